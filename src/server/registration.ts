import type { MethodDefinition, Server, UntypedHandleCall, UntypedServiceImplementation } from '@grpc/grpc-js'
import { Code, CriError } from '../errors/cri-error.ts'
import { criProtos, serviceDefinition } from '../generated/protos.ts'
import { type Encoded, type HandlerTable, type Method, type StreamHandler, type UnaryHandler, Unimplemented } from './handlers.ts'
import { type Encode, type WrapDeps, stream, unary } from './wrap.ts'

const services = ['runtime.v1.RuntimeService', 'runtime.v1.ImageService'] as const

/** The table's type ties each handler to its own messages; from here on they are all alike. */
function implement(method: Method, entry: HandlerTable[Method], responseStream: boolean, encode: Encode, deps: WrapDeps): UntypedHandleCall {
  if (entry instanceof Unimplemented) {
    const refusal = new CriError(Code.UNIMPLEMENTED, `${method} is not implemented: ${entry.reason}`)
    const refuse = (): Promise<never> => Promise.reject(refusal)
    const refusing = { ...deps, refusal: () => refusal }
    return responseStream ? stream(refusing, method, refuse, encode) : unary(refusing, method, refuse, encode)
  }
  const handler: unknown = entry
  return responseStream
    ? stream(deps, method, handler as StreamHandler<object, object>, encode)
    : unary(deps, method, handler as UnaryHandler<object, object>, encode)
}

/** Registers every RPC of both services. Throws if the table lacks one that the wire contract has. */
export function registerHandlers(server: Server, handlers: HandlerTable, deps: WrapDeps): void {
  for (const service of services) {
    const definition: Record<string, MethodDefinition<object, Encoded>> = {}
    const implementation: UntypedServiceImplementation = {}
    for (const [name, rpc] of Object.entries(serviceDefinition(criProtos(), service))) {
      const method = name as Method
      const handler = (handlers as Partial<HandlerTable>)[method]
      if (handler === undefined) throw new TypeError(`no handler for ${service}/${name}`)
      definition[name] = { ...rpc, responseSerialize: (answer: Encoded) => answer.bytes } as MethodDefinition<object, Encoded>
      implementation[name] = implement(method, handler, rpc.responseStream, rpc.responseSerialize, deps)
    }
    server.addService(definition, implementation)
  }
}
