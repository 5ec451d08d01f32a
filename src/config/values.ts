import { parseGoDuration } from './go-duration.ts'
import type { Key } from './keys.ts'

/** A value in the form of the settings: durations in milliseconds. */
export type Value = boolean | number | string | readonly string[]

export type Parsed = { readonly value: Value } | { readonly code: 'wrong-type' | 'bad-value'; readonly problem: string }

const DURATION_HELP = 'write a number with a unit, such as "10s", "5m0s", "1h30m"'

/** A value of the file as the key wants it, or what is wrong with it (to be put behind the key's name). */
export function parseValue(key: Key, value: unknown): Parsed {
  switch (key.kind) {
    case 'any':
      return { value: '' }
    case 'bool':
      return typeof value === 'boolean' ? { value } : wrongType(key, value, 'true or false, without quotes')
    case 'int':
    case 'seconds':
      return parseInteger(key, value)
    case 'strings':
      if (Array.isArray(value) && value.every((item) => typeof item === 'string')) return { value }
      return wrongType(key, value, typeof value === 'string' && key.secret !== true ? `an array of strings: [${JSON.stringify(value)}]` : 'an array of strings')
    case 'duration':
      return parseDuration(key, value)
    default:
      return parseString(key, value)
  }
}

function parseInteger(key: Key, value: unknown): Parsed {
  if (typeof value !== 'bigint' && (typeof value !== 'number' || !Number.isInteger(value))) {
    return wrongType(key, value, key.kind === 'seconds' ? 'a whole number of seconds, without quotes' : 'a whole number, without quotes')
  }
  const min = key.min ?? 0
  const max = key.max ?? Number.MAX_SAFE_INTEGER
  if (value < min || value > max) {
    const range = key.max === undefined ? `at least ${min}` : `between ${min} and ${max}`
    return { code: 'bad-value', problem: `must be ${range}, not ${value}` }
  }
  return { value: key.kind === 'seconds' ? Number(value) * 1000 : Number(value) }
}

function parseDuration(key: Key, value: unknown): Parsed {
  if (typeof value !== 'string') return wrongType(key, value, `a duration in quotes; ${DURATION_HELP}`)
  if (value === '') return { value: '' }
  const ms = parseGoDuration(value)
  if (ms === undefined) return { code: 'bad-value', problem: `is not a duration: ${JSON.stringify(value)}; ${DURATION_HELP}` }
  return ms < 0 ? { code: 'bad-value', problem: `must not be negative, but is ${JSON.stringify(value)}` } : { value: ms }
}

function parseString(key: Key, value: unknown): Parsed {
  if (typeof value !== 'string') {
    const quoted = (typeof value === 'number' || typeof value === 'bigint' || typeof value === 'boolean') && key.secret !== true
    return wrongType(key, value, quoted ? `a string: "${value}"` : 'a string')
  }
  if (value === '') return { value }
  if (key.path === true && !value.startsWith('/')) {
    return { code: 'bad-value', problem: `must be an absolute path, not ${JSON.stringify(value)}` }
  }
  if (key.values !== undefined && !key.values.includes(value)) {
    return { code: 'bad-value', problem: `must be one of ${key.values.map((word) => JSON.stringify(word)).join(', ')}, not ${JSON.stringify(value)}` }
  }
  return { value }
}

function wrongType(key: Key, value: unknown, wanted: string): Parsed {
  return { code: 'wrong-type', problem: `must be ${wanted}; it is ${typeName(value, key.secret === true)}` }
}

function typeName(value: unknown, secret: boolean): string {
  if (Array.isArray(value)) return 'an array'
  if (value instanceof Date) return 'a date'
  if (typeof value === 'object') return 'a table'
  if (typeof value === 'string') return secret ? 'a string' : `the string ${JSON.stringify(value)}`
  if (typeof value === 'boolean') return `${value}`
  return secret || (typeof value !== 'number' && typeof value !== 'bigint') ? 'a number' : `the number ${value}`
}
