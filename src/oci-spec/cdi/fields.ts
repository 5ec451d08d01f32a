import { invalidArgument } from '../../errors/cri-error.ts'

export type Json = Readonly<Record<string, unknown>>

/** Reads a field: its value and where it is, for messages. */
export type Reader<T> = (value: unknown, where: string) => T

export function fail(where: string, what: string): never {
  throw invalidArgument(`${where} ${what}`)
}

export const isObject = (value: unknown): value is Json => typeof value === 'object' && value !== null && !Array.isArray(value)

/** A table without fields other than those named: a misspelt one would silently do nothing. */
export function object(value: unknown, where: string, fields: readonly string[]): Json {
  if (!isObject(value)) return fail(where, 'is not an object')
  for (const key of Object.keys(value)) if (!fields.includes(key)) fail(where, `has the field ${JSON.stringify(key)}, which CDI does not know`)
  return value
}

export function text(value: unknown, where: string): string {
  if (typeof value !== 'string') return fail(where, 'is not a string')
  return value.includes('\0') ? fail(where, 'has a NUL byte in it') : value
}

export function filled(value: unknown, where: string): string {
  const result = text(value, where)
  return result === '' ? fail(where, 'is empty') : result
}

export function bool(value: unknown, where: string): boolean {
  return typeof value === 'boolean' ? value : fail(where, 'is not true or false')
}

/** A whole number within bounds. */
export function integer(minimum: number, maximum: number): Reader<number> {
  return (value, where) => (typeof value === 'number' && Number.isInteger(value) && value >= minimum && value <= maximum ? value : fail(where, `is not a whole number in ${minimum}..${maximum}`))
}

/** Undefined and null both mean that the field was not given. */
export function list<T>(value: unknown, where: string, read: Reader<T>): T[] {
  if (value === undefined || value === null) return []
  if (!Array.isArray(value)) return fail(where, 'is not a list')
  return value.map((element, index) => read(element, `${where}[${index}]`))
}

/** The fields that were given, each read by its reader. */
export function optional<T extends object>(json: Json, where: string, readers: { readonly [K in keyof T]-?: Reader<NonNullable<T[K]>> }): Partial<T> {
  const result: Record<string, unknown> = {}
  for (const [key, read] of Object.entries<Reader<unknown>>(readers)) {
    const value = json[key]
    if (value !== undefined && value !== null) result[key] = read(value, `${where}.${key}`)
  }
  return result as Partial<T>
}
