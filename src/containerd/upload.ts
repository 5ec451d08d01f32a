import { type ClientHttp2Session, type ClientHttp2Stream, connect, constants, type IncomingHttpHeaders } from 'node:http2'
import { createConnection } from 'node:net'
import { Code } from '../errors/cri-error.ts'

/** How a call over this connection failed, in the shape that grpc-js gives its errors. */
export class UploadError extends Error {
  readonly code: number
  readonly details: string

  constructor(code: number, details: string, cause?: unknown) {
    super(details, cause === undefined ? undefined : { cause })
    this.code = code
    this.details = details
  }
}

export interface UploadHandlers {
  /** One answer, encoded. */
  readonly answer: (message: Buffer) => void
  /** Once: undefined when the call ended with status OK. */
  readonly end: (error: UploadError | undefined) => void
}

/** A call whose requests carry large data. */
export interface Upload {
  /** Sends one encoded message. Its memory must not change until it is answered. */
  send(message: Buffer): void
  /** There are no more messages. */
  finish(): void
  /** Ends the call at once. */
  cancel(): void
}

/** Each writer bounds what it has on the way by itself. */
const sessionMemoryMb = 1024

/**
 * gRPC's wire format over HTTP/2 (PROTOCOL-HTTP2 of the gRPC project) for calls that send large data. grpc-js copies each message once
 * more to put five bytes in front of it, and what it allocates for that keeps the garbage collector busy; here the memory of a message
 * goes to the socket as it is.
 */
export class UploadConnection {
  readonly #path: string
  #session: ClientHttp2Session | undefined

  /** `path` of containerd's unix socket. */
  constructor(path: string) {
    this.#path = path
  }

  begin(method: string, metadata: Readonly<Record<string, string>>, handlers: UploadHandlers): Upload {
    const stream = this.#connected().request({
      ':method': 'POST', ':path': method, ':scheme': 'http', ':authority': 'localhost', 'content-type': 'application/grpc', te: 'trailers', ...metadata,
    })
    return new Call(stream, handlers)
  }

  #connected(): ClientHttp2Session {
    if (this.#session !== undefined && !this.#session.closed && !this.#session.destroyed) return this.#session
    const session = connect('http://localhost', { createConnection: () => createConnection(this.#path), maxSessionMemory: sessionMemoryMb })
    // Each call hears of it too; here it must only not be unhandled.
    session.on('error', () => session.destroy())
    session.on('goaway', () => session.close())
    session.unref()
    this.#session = session
    return session
  }

  close(): void {
    this.#session?.destroy()
    this.#session = undefined
  }
}

class Call implements Upload {
  readonly #stream: ClientHttp2Stream
  readonly #handlers: UploadHandlers
  #received: Buffer = Buffer.alloc(0)
  #status: UploadError | 'ok' | undefined
  #failure: unknown
  #ended = false

  constructor(stream: ClientHttp2Stream, handlers: UploadHandlers) {
    this.#stream = stream
    this.#handlers = handlers
    stream.on('response', (headers) => {
      if (headers['grpc-status'] !== undefined) this.#status = statusOf(headers)
      else if (headers[':status'] !== 200) this.#status = new UploadError(Code.UNAVAILABLE, `containerd answered with HTTP status ${String(headers[':status'])}`)
    })
    stream.on('trailers', (headers) => {
      this.#status = statusOf(headers)
    })
    stream.on('data', (chunk: Buffer) => this.#take(chunk))
    stream.on('error', (error) => {
      this.#failure ??= error
    })
    stream.on('close', () => {
      if (this.#ended) return
      this.#ended = true
      if (this.#status === 'ok') handlers.end(undefined)
      else handlers.end(this.#status ?? new UploadError(Code.UNAVAILABLE, this.#failure instanceof Error ? this.#failure.message : 'the connection was closed', this.#failure))
    })
  }

  send(message: Buffer): void {
    if (this.#stream.writableEnded || this.#stream.destroyed) return
    const prefix = Buffer.alloc(5)
    prefix.writeUInt32BE(message.length, 1)
    this.#stream.cork()
    this.#stream.write(prefix)
    this.#stream.write(message)
    this.#stream.uncork()
  }

  finish(): void {
    if (!this.#stream.writableEnded && !this.#stream.destroyed) this.#stream.end()
  }

  cancel(): void {
    if (!this.#stream.destroyed) this.#stream.close(constants.NGHTTP2_CANCEL)
  }

  #take(chunk: Buffer): void {
    this.#received = this.#received.length === 0 ? chunk : Buffer.concat([this.#received, chunk])
    while (this.#received.length >= 5) {
      const end = 5 + this.#received.readUInt32BE(1)
      if (this.#received.length < end) return
      const message = this.#received.subarray(5, end)
      this.#received = this.#received.subarray(end)
      this.#handlers.answer(message)
    }
  }
}

function statusOf(headers: IncomingHttpHeaders): UploadError | 'ok' {
  const code = Number(headers['grpc-status'])
  if (code === 0) return 'ok'
  return new UploadError(code, percentDecoded(String(headers['grpc-message'] ?? '')))
}

function percentDecoded(text: string): string {
  try {
    return decodeURIComponent(text)
  } catch {
    return text
  }
}
