import type { Messages } from '../generated/cri.ts'
import { criProtos, messageCodec } from '../generated/protos.ts'

/** The parts of a DescriptorProto that are looked at here. */
interface Descriptor {
  readonly field: readonly { readonly name: string; readonly type: string; readonly typeName: string; readonly label: string }[]
}

const wide = new Set(['TYPE_INT64', 'TYPE_UINT64', 'TYPE_SINT64', 'TYPE_FIXED64', 'TYPE_SFIXED64'])

/**
 * A CRI message as Go's encoding/json writes its generated struct (`json:"field_name,omitempty"`): zero values left out, 64-bit
 * integers as numbers, bytes as base64, enums as numbers. That is how containerd's CRI plugin stores configurations in container
 * extensions, and what `fromGoJson` reads back.
 */
export function toGoJson(messageName: string, message: object): unknown {
  return convert(messageName, message)
}

function convert(messageName: string, message: object): Record<string, unknown> {
  const descriptor = messageCodec(criProtos(), messageName).type as Descriptor
  const out: Record<string, unknown> = {}
  for (const field of descriptor.field) {
    const value: unknown = (message as Record<string, unknown>)[field.name]
    if (value === undefined || value === null) continue
    const child = field.type === 'TYPE_MESSAGE' ? field.typeName.replace(/^\./, '') : ''
    const one = (item: unknown): unknown => {
      if (item !== null && typeof item === 'object' && child !== '' && !Buffer.isBuffer(item)) return convert(qualify(messageName, child), item)
      if (wide.has(field.type)) return integer(String(item))
      return Buffer.isBuffer(item) ? item.toString('base64') : item
    }
    if (field.label === 'LABEL_REPEATED') {
      // A map arrives as a plain object: its values here are scalars only (CRI has no map of messages in a configuration).
      if (Array.isArray(value)) {
        if (value.length > 0) out[field.name] = value.map(one)
      } else if (Object.keys(value).length > 0) out[field.name] = value
    } else if (child !== '') out[field.name] = one(value)
    else {
      const plain = one(value)
      if (plain !== 0 && plain !== '' && plain !== false) out[field.name] = plain
    }
  }
  return out
}

/** A 64-bit integer in full: what JavaScript rounds (the largest one, say) Go would refuse to read. */
function integer(decimal: string): unknown {
  const number = Number(decimal)
  // JSON.rawJSON is in the engine; TypeScript's library has no type for it yet.
  return Number.isSafeInteger(number) ? number : (JSON as unknown as { rawJSON(text: string): unknown }).rawJSON(decimal)
}

/** Parses what Go's encoding/json wrote: an integer that JavaScript would round stays the string that it is. Throws a SyntaxError. */
export function parseGoJson(text: string): unknown {
  return JSON.parse(text, (_key, value: unknown, context?: { readonly source?: string }) => {
    if (typeof value !== 'number' || Number.isSafeInteger(value)) return value
    const source = context?.source ?? ''
    return /^-?\d+$/.test(source) ? source : value
  })
}

/** Descriptors name siblings without their package. */
function qualify(messageName: string, typeName: string): string {
  return typeName.includes('.') ? typeName : `${messageName.slice(0, messageName.lastIndexOf('.'))}.${typeName}`
}

/** The message that Go's encoding/json wrote, every field present. Unknown fields are dropped. Throws a TypeError on anything but an object. */
export function fromGoJson<N extends keyof Messages>(messageName: N, json: unknown): Messages[N] {
  if (json === null || typeof json !== 'object') throw new TypeError(`${messageName}: expected a JSON object`)
  const codec = messageCodec(criProtos(), messageName)
  return codec.deserialize(codec.serialize(json)) as Messages[N]
}
