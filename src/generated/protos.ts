import { join } from 'node:path'
import { type PackageDefinition, type ServiceDefinition, loadSync } from '@grpc/proto-loader'
import { readdirSync } from 'node:fs'

const api = join(import.meta.dirname, '../../api')

/**
 * Loads one folder of wire contracts. Decoded messages have every field (absent messages are null), 64-bit integers as strings,
 * enums as numbers and the field names of the .proto file.
 */
function load(folder: string): PackageDefinition {
  const files = readdirSync(join(api, folder)).filter((name) => name.endsWith('.proto')).map((name) => `${folder}/${name}`)
  return loadSync(files, { keepCase: true, longs: String, enums: Number, bytes: Buffer, defaults: true, arrays: true, objects: true, includeDirs: [api] })
}

let cri: PackageDefinition | undefined
let containerd: PackageDefinition | undefined

/** The definitions of api/cri, loaded once. */
export function criProtos(): PackageDefinition {
  return (cri ??= load('cri'))
}

/** The definitions of api/containerd, loaded once. */
export function containerdProtos(): PackageDefinition {
  return (containerd ??= load('containerd'))
}

/** A message's codec, for what travels outside a call (google.protobuf.Any, cached encodings). Throws a TypeError on an unknown name. */
export function messageCodec(protos: PackageDefinition, fullName: string): { serialize(message: object): Buffer; deserialize(bytes: Buffer): object; type: object } {
  const found = protos[fullName]
  if (found === undefined || !('serialize' in found) || typeof found.serialize !== 'function') throw new TypeError(`no message ${fullName} in the wire contracts`)
  return found as { serialize(message: object): Buffer; deserialize(bytes: Buffer): object; type: object }
}

/** A service's definition, as grpc-js takes it. Throws a TypeError on an unknown name. */
export function serviceDefinition(protos: PackageDefinition, fullName: string): ServiceDefinition {
  const found = protos[fullName]
  if (found === undefined || 'format' in found) throw new TypeError(`no service ${fullName} in the wire contracts`)
  return found as ServiceDefinition
}
