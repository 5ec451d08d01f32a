import type { Any, Messages } from '../generated/containerd.ts'
import type { Init } from '../generated/int64.ts'
import { containerdProtos, messageCodec } from '../generated/protos.ts'

/** A google.protobuf.Any of one of containerd's messages. containerd's type URLs are the bare message names. */
export function packAny<N extends keyof Messages>(name: N, message: Init<Messages[N]>): Init<Any> {
  return { type_url: name, value: messageCodec(containerdProtos(), name).serialize(message) }
}

/** The message in an Any, undefined when it holds another type. */
export function unpackAny<N extends keyof Messages>(name: N, any: Any | null): Messages[N] | undefined {
  if (any === null || baseName(any.type_url) !== name) return undefined
  return messageCodec(containerdProtos(), name).deserialize(any.value) as Messages[N]
}

/** The message name in a type URL: containerd writes it bare, others put a host before it. */
export function baseName(typeUrl: string): string {
  return typeUrl.startsWith('type.googleapis.com/') ? typeUrl.slice('type.googleapis.com/'.length) : typeUrl
}
