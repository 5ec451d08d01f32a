import type { Int64 } from '../generated/int64.ts'
import { invalidArgument } from '../errors/cri-error.ts'
import type { OciInteger } from './types.ts'

/** The largest uid and gid: runc keeps them in a signed 32-bit integer, so 2^31 and above are refused (CVE-2024-40635). */
export const MAX_ID = 2 ** 31 - 1

/** A 64-bit integer of the wire for the spec: a number while that is exact. Throws INVALID_ARGUMENT when it is below `minimum`. */
export function ociInteger(value: Int64, field: string, minimum?: bigint): OciInteger {
  const integer = BigInt(value)
  if (minimum !== undefined && integer < minimum) throw invalidArgument(`${field} is ${value}: it must not be less than ${minimum}`)
  const number = Number(integer)
  return Number.isSafeInteger(number) ? number : integer
}

/** A uid or gid of the wire. Throws INVALID_ARGUMENT outside 0..2^31-1. */
export function idOf(value: Int64, field: string): number {
  const id = BigInt(value)
  if (id < 0n || id > BigInt(MAX_ID)) throw invalidArgument(`${field} ${value} is out of range: it must be in 0..${MAX_ID}`)
  return Number(id)
}
