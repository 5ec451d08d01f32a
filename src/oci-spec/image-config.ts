import { invalidArgument } from '../errors/cri-error.ts'

/** The `config` object of an OCI image configuration (image-spec config.md), every field present and of the right type. */
export interface ImageConfig {
  readonly User: string
  readonly Env: readonly string[]
  readonly Entrypoint: readonly string[]
  readonly Cmd: readonly string[]
  readonly WorkingDir: string
  readonly Volumes: readonly string[]
  readonly Labels: Readonly<Record<string, string>>
  readonly StopSignal: string
  readonly ExposedPorts: readonly string[]
}

/**
 * Checks the `config` object of an image configuration, which is as hostile as the image. Absent and null fields become empty ones, a field
 * of another type throws INVALID_ARGUMENT that names it.
 */
export function imageConfigOf(config: unknown): ImageConfig {
  const fields = config === undefined || config === null ? {} : object(config, 'config')
  return {
    User: string(fields['User'], 'User'),
    Env: strings(fields['Env'], 'Env'),
    Entrypoint: strings(fields['Entrypoint'], 'Entrypoint'),
    Cmd: strings(fields['Cmd'], 'Cmd'),
    WorkingDir: string(fields['WorkingDir'], 'WorkingDir'),
    Volumes: keys(fields['Volumes'], 'Volumes'),
    Labels: stringMap(fields['Labels'], 'Labels'),
    StopSignal: string(fields['StopSignal'], 'StopSignal'),
    ExposedPorts: keys(fields['ExposedPorts'], 'ExposedPorts'),
  }
}

const wrong = (field: string, expected: string): Error => invalidArgument(`the image's configuration is malformed: ${field} is not ${expected}; rebuild the image`)

function object(value: unknown, field: string): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw wrong(field, 'an object')
  return value as Record<string, unknown>
}

function string(value: unknown, field: string): string {
  if (value === undefined || value === null) return ''
  if (typeof value !== 'string') throw wrong(field, 'a string')
  return value
}

function strings(value: unknown, field: string): string[] {
  if (value === undefined || value === null) return []
  if (!Array.isArray(value)) throw wrong(field, 'an array of strings')
  return value.map((element: unknown) => {
    if (typeof element !== 'string') throw wrong(field, 'an array of strings')
    return element
  })
}

const keys = (value: unknown, field: string): string[] => (value === undefined || value === null ? [] : Object.keys(object(value, field)))

function stringMap(value: unknown, field: string): Record<string, string> {
  if (value === undefined || value === null) return {}
  return Object.fromEntries(Object.entries(object(value, field)).map(([key, element]) => {
    if (typeof element !== 'string') throw wrong(field, 'a map of strings')
    return [key, element]
  }))
}
