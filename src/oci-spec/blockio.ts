import type { OciBlockIO, OciInteger } from './types.ts'

/** What one entry of a class says, for the devices that it names or (without any) for all. */
export interface BlockioParameters {
  /** Paths with `*`, `?` and `[…]`; undefined for the class's default weight. */
  readonly devices: readonly string[] | undefined
  readonly weight: OciInteger | undefined
  readonly readBps: OciInteger | undefined
  readonly writeBps: OciInteger | undefined
  readonly readIops: OciInteger | undefined
  readonly writeIops: OciInteger | undefined
}

export type BlockioClasses = ReadonlyMap<string, readonly BlockioParameters[]>

/** The value of a Kubernetes quantity (`50M`, `10k`); undefined when it is none. */
export type ParseQuantity = (text: string) => bigint | undefined

const fields = { weight: 'Weight', readBps: 'ThrottleReadBps', writeBps: 'ThrottleWriteBps', readIops: 'ThrottleReadIOPS', writeIops: 'ThrottleWriteIOPS' } as const
const WEIGHT = [10n, 1000n] as const

/**
 * The classes of a blockio configuration file (the format of goresctrl, which containerd and CRI-O read: `Classes: NAME: [{Devices, Weight,
 * ThrottleReadBps, …}]`), from its parsed YAML. Names of fields are read in any case, as Go does. Throws a TypeError that says where the mistake is.
 */
export function parseBlockioClasses(document: unknown, quantity: ParseQuantity): BlockioClasses {
  if (document === null || document === undefined) return new Map()
  const { classes = null } = named(document, 'the file', ['Classes'])
  if (classes === null) return new Map()
  if (!isObject(classes)) throw new TypeError('Classes is no mapping of names to lists')
  return new Map(Object.entries(classes).map(([name, entries]) => {
    if (!Array.isArray(entries)) throw new TypeError(`class ${name} is no list`)
    return [name, entries.map((entry: unknown, index) => parametersOf(entry, `class ${name}, entry ${index + 1}`, quantity))]
  }))
}

function parametersOf(entry: unknown, where: string, quantity: ParseQuantity): BlockioParameters {
  const found = named(entry, where, ['Devices', ...Object.values(fields)])
  const devices = found['devices'] ?? undefined
  if (devices !== undefined && (!Array.isArray(devices) || !devices.every((device) => typeof device === 'string'))) throw new TypeError(`${where}: Devices is no list of paths`)
  const value = (field: keyof typeof fields, minimum: bigint, maximum?: bigint): OciInteger | undefined => {
    const text = found[fields[field].toLowerCase()] ?? ''
    if (text === '') return undefined
    const parsed = typeof text === 'string' || typeof text === 'number' ? quantity(String(text)) : undefined
    if (parsed === undefined) throw new TypeError(`${where}: ${fields[field]} is ${JSON.stringify(text)}: it is a number such as 50M or 10k`)
    if (parsed < minimum || (maximum !== undefined && parsed > maximum)) throw new TypeError(`${where}: ${fields[field]} is ${parsed}: it must be ${maximum === undefined ? `at least ${minimum}` : `in ${minimum}..${maximum}`}`)
    return Number.isSafeInteger(Number(parsed)) ? Number(parsed) : parsed
  }
  const parameters: BlockioParameters = {
    devices, weight: value('weight', ...WEIGHT), readBps: value('readBps', 0n), writeBps: value('writeBps', 0n), readIops: value('readIops', 0n), writeIops: value('writeIops', 0n),
  }
  const throttled = rateFields.filter((field) => parameters[field] !== undefined)
  if (devices === undefined && throttled.length > 0) throw new TypeError(`${where}: ${throttled.map((field) => fields[field]).join(', ')} without Devices: only devices can be throttled`)
  return parameters
}

/** The fields of a mapping by their names in lower case. */
function named(value: unknown, where: string, known: readonly string[]): Readonly<Record<string, unknown>> {
  if (!isObject(value)) throw new TypeError(`${where} is no mapping`)
  const lower = new Set(known.map((name) => name.toLowerCase()))
  const unknown = Object.keys(value).find((name) => !lower.has(name.toLowerCase()))
  if (unknown !== undefined) throw new TypeError(`${where}: the field ${unknown} is not known; there are ${known.join(', ')}`)
  return Object.fromEntries(Object.entries(value).map(([name, content]) => [name.toLowerCase(), content]))
}

export interface BlockDevice {
  readonly major: number
  readonly minor: number
}

const rates = { readBps: 'throttleReadBpsDevice', writeBps: 'throttleWriteBpsDevice', readIops: 'throttleReadIOPSDevice', writeIops: 'throttleWriteIOPSDevice' } as const
const rateFields = Object.keys(rates) as (keyof typeof rates)[]

/** linux.resources.blockIO of a class. Of two entries that meet on one device the later one counts, field by field. */
export function blockioOf(entries: readonly BlockioParameters[], devicesOf: (pattern: string) => readonly BlockDevice[]): OciBlockIO {
  const result: OciBlockIO = {}
  for (const entry of entries) {
    if (entry.devices === undefined && entry.weight !== undefined) result.weight = Number(entry.weight)
    for (const { major, minor } of (entry.devices ?? []).flatMap(devicesOf)) {
      if (entry.weight !== undefined) result.weightDevice = [...others(result.weightDevice, major, minor), { major, minor, weight: Number(entry.weight) }]
      for (const field of rateFields) {
        const rate = entry[field]
        if (rate !== undefined) result[rates[field]] = [...others(result[rates[field]], major, minor), { major, minor, rate }]
      }
    }
  }
  return result
}

function others<T extends BlockDevice>(list: readonly T[] | undefined, major: number, minor: number): T[] {
  return (list ?? []).filter((device) => device.major !== major || device.minor !== minor)
}

const isObject = (value: unknown): value is Readonly<Record<string, unknown>> => typeof value === 'object' && value !== null && !Array.isArray(value)
