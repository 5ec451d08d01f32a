import { Code, CriError } from './cri-error.ts'

/**
 * The reason of a pull for which no registry could be reached. It is the word by which kubelets know that (k8s.io/cri-api/pkg/errors,
 * ErrRegistryUnavailable): at the beginning of the message, and only when the code is UNKNOWN, which their client takes off.
 */
export const REGISTRY_UNAVAILABLE = 'RegistryUnavailable'

const prefix = `${REGISTRY_UNAVAILABLE}: `

/** The error as a kubelet shows it best: a pod's status is `RegistryUnavailable` then, where it would be `ErrImagePull`. All others stay what they are. */
export function inKubeletsWords(error: unknown): unknown {
  if (!(error instanceof CriError) || error.reason !== REGISTRY_UNAVAILABLE) return error
  return new CriError(Code.UNKNOWN, `${prefix}${error.message}`, { reason: error.reason, cause: error })
}

/** The same for who reads codes: UNAVAILABLE again. */
export function inOwnWords(error: CriError): CriError {
  if (error.code !== Code.UNKNOWN || !error.message.startsWith(prefix)) return error
  return new CriError(Code.UNAVAILABLE, error.message.slice(prefix.length), { reason: REGISTRY_UNAVAILABLE, cause: error })
}
