import type { OciProcess, OciResources, OciSpec } from './types.ts'

/** A google.protobuf.Any as containerd's API carries it. */
export interface OciAny {
  readonly type_url: string
  readonly value: Buffer
}

const SPEC_TYPE_URL = 'types.containerd.io/opencontainers/runtime-spec/1/Spec'
const PROCESS_TYPE_URL = 'types.containerd.io/opencontainers/runtime-spec/1/Process'
const RESOURCES_TYPE_URL = 'types.containerd.io/opencontainers/runtime-spec/1/LinuxResources'

/** The spec of Containers.Create: JSON under containerd's type URL. */
export function ociSpecAny(spec: OciSpec): OciAny {
  return { type_url: SPEC_TYPE_URL, value: Buffer.from(stringifyOciJson(spec)) }
}

/** The process of Tasks.Exec: JSON under containerd's type URL. */
export function ociProcessAny(process: OciProcess): OciAny {
  return { type_url: PROCESS_TYPE_URL, value: Buffer.from(stringifyOciJson(process)) }
}

/** The resources of Tasks.Update: JSON under containerd's type URL. */
export function ociResourcesAny(resources: OciResources): OciAny {
  return { type_url: RESOURCES_TYPE_URL, value: Buffer.from(stringifyOciJson(resources)) }
}

/** JSON with 64-bit integers written out in full. */
export function stringifyOciJson(value: object): string {
  return JSON.stringify(value, (_key, element: unknown) => (typeof element === 'bigint' ? rawJson(element) : element))
}

/**
 * Parses JSON that has 64-bit integers in it (a stored spec, base_runtime_spec, a seccomp profile): an integer beyond 2^53 becomes a bigint,
 * where JSON.parse would round RLIM_INFINITY to a number that the runtime refuses. Throws SyntaxError.
 */
export function parseOciJson(text: string): unknown {
  return JSON.parse(text, (_key, element: unknown, context?: { source?: string }) => {
    if (typeof element !== 'number' || Number.isSafeInteger(element)) return element
    const source = context?.source ?? ''
    return /^-?\d+$/.test(source) ? BigInt(source) : element
  })
}

/** A stored spec, read back from the Any that containerd returns. Throws SyntaxError. */
export function parseOciSpec(value: Uint8Array): OciSpec {
  return parseOciJson(Buffer.from(value).toString('utf8')) as OciSpec
}

/** JSON.rawJSON is in the engine (TC39 JSON.parse source text access); TypeScript's library has no type for it yet. */
function rawJson(value: bigint): unknown {
  return (JSON as unknown as { rawJSON(text: string): unknown }).rawJSON(value.toString())
}
