import { messageOf } from '../errors/cri-error.ts'
import type { JsonObject } from './types.ts'

export function isJsonObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** The strings of an array; anything else is left out. */
export function stringsOf(value: unknown): string[] {
  return Array.isArray(value) ? value.filter((entry) => typeof entry === 'string') : []
}

/** The object that `text` holds. The error says what is wrong and where, for a message that names the file. */
export function parseJsonObject(text: string): JsonObject {
  if (text.trim() === '') throw new Error('is empty')
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (error) {
    throw new Error(`is not valid JSON: ${messageOf(error)}`, { cause: error })
  }
  if (!isJsonObject(value)) throw new Error('is not a JSON object')
  return value
}
