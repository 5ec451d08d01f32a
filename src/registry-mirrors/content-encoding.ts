import type { IncomingHttpHeaders } from 'node:http'
import zlib from 'node:zlib'
import { HostFailure, safeText } from './failures.ts'

type Decoder = (bytes: Buffer, options: { readonly maxOutputLength: number }) => Buffer

const decoders: ReadonlyMap<string, Decoder> = new Map<string, Decoder>([
  ['gzip', zlib.gunzipSync], ['x-gzip', zlib.gunzipSync], ['deflate', zlib.inflateSync], ['br', zlib.brotliDecompressSync], ['zstd', zlib.zstdDecompressSync],
])

/** The Content-Encoding of an answer, undefined when there is none. All requests ask for none; caches in front of registries send what they have. */
export function encodingOf(headers: IncomingHttpHeaders): string | undefined {
  const encoding = (headers['content-encoding'] ?? '').trim().toLowerCase()
  return encoding === '' || encoding === 'identity' ? undefined : encoding
}

/** A whole small body without its Content-Encoding. Throws a HostFailure of kind `content` for what cannot be decoded, or becomes larger than `maxBytes`. */
export function decodeBody(bytes: Buffer, headers: IncomingHttpHeaders, maxBytes: number): Buffer {
  const encoding = encodingOf(headers)
  if (encoding === undefined) return bytes
  try {
    const decode = decoders.get(encoding)
    if (decode !== undefined) return decode(bytes, { maxOutputLength: maxBytes })
  } catch {
    // Said below.
  }
  throw new HostFailure('content', `sent it ${safeText(encoding, 30)}-encoded, which was not asked for and cannot be read`)
}
