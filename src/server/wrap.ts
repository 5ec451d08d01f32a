import { Metadata, type ServerWritableStream, type handleServerStreamingCall, type handleUnaryCall, type sendUnaryData } from '@grpc/grpc-js'
import { Code, CriError, messageOf } from '../errors/cri-error.ts'
import { responseIds } from './call-ids.ts'
import type { Call, Calls, ClientSide } from './calls.ts'
import { Encoded, type Method, type StreamHandler, type UnaryHandler } from './handlers.ts'
import { isEndless } from './methods.ts'
import { type RpcStatus, okStatus, statusOf } from './status.ts'

export interface WrapDeps {
  readonly calls: Calls
  /** Why the RPC may not run now; undefined if it may. */
  readonly refusal: (method: Method) => CriError | undefined
  /** The largest answer, in bytes. */
  readonly maxMessageBytes: number
}

/** The wire form of a response message. */
export type Encode = (message: object) => Buffer

/** Encodes an answer before grpc-js does: there a failure would neither reach the log nor say what it was about. */
function encode(method: Method, message: object, encodeMessage: Encode, maxBytes: number): Encoded {
  let answer: Encoded
  try {
    answer = message instanceof Encoded ? message : new Encoded(encodeMessage(message))
  } catch (error) {
    throw new CriError(Code.INTERNAL, `${method}: the answer cannot be encoded: ${messageOf(error)}`, { cause: error })
  }
  if (answer.bytes.length > maxBytes) {
    throw new CriError(
      Code.RESOURCE_EXHAUSTED,
      `${method}: the answer has ${answer.bytes.length} bytes, more than the limit of ${maxBytes}; ask with a filter or use the streaming RPC`,
    )
  }
  return answer
}

/** Runs one call to its end. What escapes `serve` (sending the answer failed) is logged: there is nobody left to tell. */
function run(deps: WrapDeps, method: Method, client: ClientSide & { readonly request: object }, serve: (call: Call) => Promise<void>): void {
  const call = deps.calls.begin(method, client, client.request)
  serve(call).catch((error: unknown) => {
    call.ctx.log.error({ err: error }, 'the answer could not be sent')
    call.end(statusOf(error, call.ctx.signal), error)
  })
}

/** Serves an RPC with one answer: context, gate, status, log and metrics around `handler`. It always answers. */
export function unary(deps: WrapDeps, method: Method, handler: UnaryHandler<object, object>, encodeMessage: Encode): handleUnaryCall<object, Encoded> {
  const serve = async (call: Call, request: object, client: ClientSide, respond: sendUnaryData<Encoded>): Promise<void> => {
    const { signal } = call.ctx
    let message: object
    let answer: Encoded
    try {
      const refused = deps.refusal(method)
      if (refused !== undefined) throw refused
      signal.throwIfAborted()
      message = await call.within(() => handler(call.ctx, request))
      answer = encode(method, message, encodeMessage, deps.maxMessageBytes)
    } catch (error) {
      const status = statusOf(error, signal)
      respond(status)
      call.end(status, error)
      return
    }
    respond(null, answer)
    // The work is done, but a client that is gone has seen another end of the call than OK.
    call.end(client.cancelled ? statusOf(signal.reason, signal) : okStatus, undefined, responseIds(message))
  }
  return (client, respond) => run(deps, method, client, (call) => serve(call, client.request, client, respond))
}

/** Serves an RPC with a stream of answers, as `unary` does. */
export function stream(deps: WrapDeps, method: Method, handler: StreamHandler<object, object>, encodeMessage: Encode): handleServerStreamingCall<object, Encoded> {
  const serve = async (call: Call, client: ServerWritableStream<object, Encoded>): Promise<void> => {
    const { signal } = call.ctx
    const gone = Promise.withResolvers<void>()
    signal.addEventListener('abort', () => gone.resolve(), { once: true })
    if (signal.aborted) gone.resolve()

    let drained: Promise<void> | undefined
    const send = async (message: object): Promise<void> => {
      signal.throwIfAborted()
      if (client.write(encode(method, message, encodeMessage, deps.maxMessageBytes))) return
      // One listener, however many senders wait. A client that is gone never drains.
      drained ??= new Promise<void>((resolve) => client.once('drain', resolve)).finally(() => (drained = undefined))
      await Promise.race([drained, gone.promise])
      signal.throwIfAborted()
    }

    let status: RpcStatus = okStatus
    let failure: unknown
    try {
      const refused = deps.refusal(method)
      if (refused !== undefined) throw refused
      signal.throwIfAborted()
      // It may be long until there is something to send: the headers tell the client that it is being served.
      if (isEndless(method)) client.sendMetadata(new Metadata())
      await call.within(() => handler(call.ctx, client.request, send))
    } catch (error) {
      failure = error
      status = statusOf(error, signal)
    }
    const flushed = new Promise<void>((resolve) => client.once('finish', resolve))
    if (status.code === 0) client.end()
    else client.emit('error', status)
    await Promise.race([flushed, gone.promise])
    // As above: what counts is what the client has seen.
    if (status.code === 0 && client.cancelled && !client.writableFinished) status = statusOf(signal.reason, signal)
    call.end(status, failure)
  }
  return (client) => run(deps, method, client, (call) => serve(call, client))
}
