import { request as httpRequest } from 'node:http'
import { Client, credentials, Metadata, type ServiceError } from '@grpc/grpc-js'
import { Code, codeName, CriError, messageOf, unavailable } from '../errors/cri-error.ts'
import { inOwnWords } from '../errors/registry-unavailable.ts'
import type { AuthConfig, PullImageResponse } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import { criProtos, serviceDefinition } from '../generated/protos.ts'
import type { PullView } from '../image-service/pull/progress.ts'

/** PullImage at a running service; no deadline. Rejects with a CriError that says what the service said, or with the signal's reason. */
export async function pullImage(address: string, image: string, auth: Init<AuthConfig> | undefined, signal: AbortSignal): Promise<string> {
  signal.throwIfAborted()
  const method = serviceDefinition(criProtos(), 'runtime.v1.ImageService')['PullImage']
  if (method === undefined) throw new TypeError('the wire contract has no PullImage')
  const client = new Client(address.startsWith('unix:') ? address : `unix://${address}`, credentials.createInsecure())
  try {
    return await new Promise<string>((resolve, reject) => {
      const call = client.makeUnaryRequest(method.path, method.requestSerialize, method.responseDeserialize, { image: { image }, ...(auth === undefined ? {} : { auth }) }, new Metadata(), (error: ServiceError | null, response?: object) => {
        signal.removeEventListener('abort', cancel)
        if (error === null) resolve((response as PullImageResponse).image_ref)
        else reject(signal.aborted ? signal.reason as Error : errorOf(error, address))
      })
      const cancel = (): void => call.cancel()
      signal.addEventListener('abort', cancel, { once: true })
    })
  } finally {
    client.close()
  }
}

function errorOf(error: ServiceError, address: string): CriError {
  const code: number = error.code
  if (code === Code.UNAVAILABLE && /No connection established|connect E|ENOENT/.test(error.details)) return unavailable(`nobody answers on ${address}: is cri-shim running (systemctl status cri-shim), and is this its --listen?`, { cause: error })
  const said = inOwnWords(new CriError(code as Code, error.details))
  return new CriError(said.code, `${codeName(said.code)}: ${said.message}`)
}

/** The `/pulls` listing of the metrics address (`HOST:PORT` or `unix:///PATH`). Rejects with an Error that says why there is none. */
export async function fetchPulls(address: string, timeoutMs = 5000): Promise<PullView[]> {
  if (address === '') throw new Error('metrics_address is not set')
  const where = address.startsWith('unix://') ? { socketPath: address.slice('unix://'.length) } : { host: address.slice(0, address.lastIndexOf(':')).replace(/^\[|\]$/g, ''), port: address.slice(address.lastIndexOf(':') + 1) }
  const body = await new Promise<string>((resolve, reject) => {
    const request = httpRequest({ ...where, path: '/pulls', signal: AbortSignal.timeout(timeoutMs), agent: false }, (response) => {
      const chunks: Buffer[] = []
      response.on('data', (chunk: Buffer) => chunks.push(chunk))
      response.once('error', reject)
      response.once('end', () => (response.statusCode === 200 ? resolve(Buffer.concat(chunks).toString('utf8')) : reject(new Error(`${address}/pulls answered ${response.statusCode}`))))
    })
    request.once('error', (error) => reject(new Error(`${address} cannot be asked: ${messageOf(error)}`, { cause: error })))
    request.end()
  })
  const list: unknown = JSON.parse(body)
  if (!Array.isArray(list)) throw new Error(`${address}/pulls is no list`)
  return list as PullView[]
}
