import { Client, type ClientReadableStream, type ServiceError, type CallOptions, credentials } from '@grpc/grpc-js'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { criProtos, serviceDefinition } from '../generated/protos.ts'
import type { Init } from '../generated/int64.ts'
import { createLogger } from '../observability/logger.ts'
import { type Metrics, createMetrics } from '../observability/metrics.ts'
import { Endpoint } from './endpoint.ts'
import { type HandlerTable, type Method, type Rpcs, unimplemented } from './handlers.ts'
import type { Gate } from './service.ts'

// For the tests of this folder and of src/cli only.

const definitions = { ...serviceDefinition(criProtos(), 'runtime.v1.RuntimeService'), ...serviceDefinition(criProtos(), 'runtime.v1.ImageService') }

/** A table in which everything that is not given is unimplemented. */
export function tableOf(handlers: Partial<HandlerTable>): HandlerTable {
  const table: Record<string, unknown> = {}
  for (const method of Object.keys(definitions)) table[method] = unimplemented('not part of this test')
  return { ...table, ...handlers } as HandlerTable
}

/** The wire form of a response. */
export function encodeResponse<M extends Method>(method: M, message: Init<Rpcs[M]['response']>): Buffer {
  return definition(method).responseSerialize(message)
}

function definition(method: Method): (typeof definitions)[string] {
  const found = definitions[method]
  if (found === undefined) throw new TypeError(method)
  return found
}

/** A client of one socket. */
export class TestClient implements Disposable {
  readonly client: Client

  constructor(path: string) {
    this.client = new Client(`unix://${path}`, credentials.createInsecure(), { 'grpc.max_receive_message_length': -1 })
  }

  start<M extends Method>(method: M, request: Init<Rpcs[M]['request']> = {} as Init<Rpcs[M]['request']>, options: CallOptions = {}): { readonly answer: Promise<Rpcs[M]['response']>; cancel(): void } {
    const rpc = definition(method)
    const answer = Promise.withResolvers<Rpcs[M]['response']>()
    const call = this.client.makeUnaryRequest(rpc.path, rpc.requestSerialize, rpc.responseDeserialize as (bytes: Buffer) => Rpcs[M]['response'], request, options, (error, value) => {
      if (error === null && value !== undefined) answer.resolve(value)
      else answer.reject(error ?? new Error('neither an error nor an answer'))
    })
    return { answer: answer.promise, cancel: () => call.cancel() }
  }

  async call<M extends Method>(method: M, request?: Init<Rpcs[M]['request']>, options?: CallOptions): Promise<Rpcs[M]['response']> {
    return this.start(method, request, options).answer
  }

  /** The error that a call ends with. */
  async failure<M extends Method>(method: M, request?: Init<Rpcs[M]['request']>, options?: CallOptions): Promise<ServiceError> {
    return this.call(method, request, options).then(
      () => {
        throw new Error(`${method} did not fail`)
      },
      (error: ServiceError) => error,
    )
  }

  stream<M extends Method>(method: M, request: Init<Rpcs[M]['request']> = {} as Init<Rpcs[M]['request']>): ClientReadableStream<Rpcs[M]['response']> {
    const rpc = definition(method)
    return this.client.makeServerStreamRequest(rpc.path, rpc.requestSerialize, rpc.responseDeserialize as (bytes: Buffer) => Rpcs[M]['response'], request)
  }

  [Symbol.dispose](): void {
    this.client.close()
  }
}

/** A line of the log. */
export type LogLine = Record<string, unknown> & { readonly msg: string; readonly level: string }

/** Keeps what is logged. */
export class LogCapture {
  readonly lines: LogLine[] = []
  readonly log = createLogger('trace', { write: (line) => void this.lines.push(JSON.parse(line) as LogLine) })
}

/** A directory of the test's own. */
export function temporaryDirectory(): Disposable & { readonly path: string } {
  const path = mkdtempSync(join(tmpdir(), 'cri-shim-test-'))
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) }
}

/** An endpoint that listens, a client of it, its log and metrics; gone with the scope. */
export interface Fixture extends AsyncDisposable {
  readonly endpoint: Endpoint
  readonly client: TestClient
  readonly lines: LogLine[]
  readonly metrics: Metrics
}

export async function fixture(handlers: Partial<HandlerTable>, options: { readonly gate?: Gate; readonly maxMessageBytes?: number } = {}): Promise<Fixture> {
  const directory = temporaryDirectory()
  const capture = new LogCapture()
  const metrics = createMetrics()
  const endpoint = new Endpoint(
    { handlers: tableOf(handlers), gate: options.gate ?? (() => undefined), log: capture.log, metrics },
    { listen: `unix://${directory.path}/run/cri.sock`, ...(options.maxMessageBytes === undefined ? {} : { maxMessageBytes: options.maxMessageBytes }) },
  )
  await endpoint.listen()
  const client = new TestClient(endpoint.path)
  return {
    endpoint, client, metrics, lines: capture.lines,
    async [Symbol.asyncDispose](): Promise<void> {
      client[Symbol.dispose]()
      await endpoint.close({ graceMs: 0, undoMs: 0 })
      directory[Symbol.dispose]()
    },
  }
}
