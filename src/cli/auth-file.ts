import { Code, CriError } from '../errors/cri-error.ts'
import type { AuthConfig } from '../generated/cri.ts'
import type { ImageRef } from '../registry-mirrors/image-ref.ts'

/** The credential for the image's registry out of a Docker config.json, helpers that it names included: what a pod's pull secret would bring. */
export async function authOf(file: string, ref: ImageRef): Promise<Partial<AuthConfig>> {
  const { basicAuthorization, Credentials } = await import('../registry-mirrors/credentials.ts')
  const { noRegistrySettings } = await import('../registry-mirrors/settings.ts')
  const credentials = new Credentials({ settings: { ...noRegistrySettings, credentials: { '*': { configFile: file } } }, env: process.env })
  const credential = await credentials.of({ host: ref.registry, ownRegistry: true }, ref, null)
  // Text on the wire is UTF-8; base64 carries any bytes.
  if (credential.kind === 'password' && credential.encoding !== undefined) return { auth: basicAuthorization(credential).replace('Basic ', '') }
  if (credential.kind === 'password') return { username: credential.username, password: credential.password }
  if (credential.kind === 'identity') return { identity_token: credential.token }
  if (credential.kind === 'registry') return { registry_token: credential.token }
  throw new CriError(Code.FAILED_PRECONDITION, credential.problem ?? `${file} has no credential for ${ref.registry}`)
}
