import type { IncomingMessage } from 'node:http'
import { readBody } from './body-reader.ts'
import { safeText } from './failures.ts'
import { isObject } from './json.ts'
import { hideSecrets } from './secrets.ts'

const maxBytes = 64 * 1024
/** What is written about a refusal is worth waiting for, but not for long. */
const timeoutMs = 1000
const maxLength = 120

/**
 * What a registry or a token service writes about its refusal, fit for an error: the first of its errors (OCI distribution specification, "Error Codes"), or
 * what token services say instead (RFC 6749, section 5.2, and Docker Hub's `details`). Empty when there is nothing of the kind. `secrets`: what was sent there, which they
 * may repeat.
 */
export async function readDetail(response: IncomingMessage, stallTimeoutMs: number, secrets: readonly string[]): Promise<string> {
  try {
    const text = (await readBody(response, maxBytes, Math.min(stallTimeoutMs, timeoutMs))).toString('utf8')
    const page = pages.find(({ says }) => says.test(text))
    return page?.means ?? safeText(hideSecrets(detailOf(JSON.parse(text)), secrets), maxLength)
  } catch {
    return ''
  }
}

/** What web servers (nginx, Go's, Apache) write in front of any registry: the one thing of such pages that helps. */
const pages: readonly { readonly says: RegExp; readonly means: string }[] = [
  { says: /plain HTTP request was sent to HTTPS port|sent an HTTP request to an HTTPS server|speaking plain HTTP to an SSL-enabled/i, means: 'it speaks TLS: write https:// for it' },
  { says: /No required SSL certificate was sent/, means: 'it wants a client certificate: name it with client in a hosts.toml' },
  { says: /The SSL certificate error/, means: 'it does not accept the client certificate: it must trust the authority that signed it' },
]

function detailOf(document: unknown): string {
  if (!isObject(document)) return ''
  const { errors, error, error_description: description, details, message } = document
  const first: unknown = Array.isArray(errors) ? errors[0] : undefined
  const parts = isObject(first) ? [first['code'], first['message']] : [error, description, details, message]
  return parts.filter((part) => typeof part === 'string' && part !== '').join(': ')
}
