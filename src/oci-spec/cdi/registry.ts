import { failedPrecondition, invalidArgument } from '../../errors/cri-error.ts'
import type { CdiEdits, CdiSpecification } from './specification.ts'

/** A specification and where it was found. */
export interface CdiSource {
  readonly path: string
  /** The place of its directory in `cdi_spec_dirs`: the later one wins. */
  readonly priority: number
  readonly specification: CdiSpecification
}

/** A file that holds no specification that can be used. */
export interface CdiFault {
  readonly path: string
  readonly message: string
}

interface Found {
  readonly source: CdiSource
  readonly edits: CdiEdits
}

/** The devices of a set of specifications, by qualified name (`vendor/class=device`). */
export class CdiRegistry {
  readonly #devices = new Map<string, Found[]>()
  readonly #dirs: readonly string[]
  readonly #faults: readonly CdiFault[]

  /** `dirs` were searched, `faults` were found there: both are for error messages. */
  constructor(sources: readonly CdiSource[], dirs: readonly string[], faults: readonly CdiFault[]) {
    this.#dirs = dirs
    this.#faults = faults
    for (const source of sources) {
      for (const [name, edits] of source.specification.devices) {
        const qualified = `${source.specification.kind}=${name}`
        const known = this.#devices.get(qualified) ?? []
        const best = known[0]?.source.priority ?? source.priority
        if (source.priority > best) this.#devices.set(qualified, [{ source, edits }])
        else if (source.priority === best) this.#devices.set(qualified, [...known, { source, edits }])
      }
    }
  }

  get deviceNames(): readonly string[] {
    return [...this.#devices.keys()].toSorted()
  }

  /** Devices that two files of one directory define: neither counts. */
  get conflicts(): readonly { readonly device: string; readonly paths: readonly string[] }[] {
    return [...this.#devices].filter(([, found]) => found.length > 1).map(([device, found]) => ({ device, paths: found.map(({ source }) => source.path) }))
  }

  /**
   * What a container with these devices gets, in order: each specification's own edits before those of its first device. Throws
   * INVALID_ARGUMENT for a device that is not there, FAILED_PRECONDITION for one that is defined twice.
   */
  resolve(names: readonly string[]): CdiEdits[] {
    const missing = names.filter((name) => !this.#devices.has(name))
    if (missing.length > 0) throw invalidArgument(this.#missing(missing), { reason: 'UnknownCdiDevice' })
    const seen = new Set<CdiSource>()
    return names.flatMap((name) => {
      const [first, ...more] = this.#devices.get(name) ?? []
      if (first === undefined) return []
      if (more.length > 0) {
        throw failedPrecondition(`CDI device ${name} is defined by ${[first, ...more].map(({ source }) => source.path).join(' and ')}, which have the same priority: remove one of the files`, { reason: 'CdiConflict' })
      }
      const ofSpecification = seen.has(first.source) ? [] : [first.source.specification.edits]
      seen.add(first.source)
      return [...ofSpecification, first.edits]
    })
  }

  #missing(names: readonly string[]): string {
    const kinds = new Set(names.map((name) => name.slice(0, name.indexOf('='))))
    const near = this.deviceNames.filter((name) => kinds.has(name.slice(0, name.indexOf('='))))
    const others = near.length === 0 ? '' : `; of this kind there are ${near.slice(0, 20).join(', ')}${near.length > 20 ? ', …' : ''}`
    const faults = this.#faults.length === 0 ? '' : `; files that cannot be used: ${this.#faults.map(({ message }) => message).join('; ')}`
    return `no CDI specification in ${this.#dirs.join(', ')} has the device${names.length > 1 ? 's' : ''} ${names.join(', ')}${others}${faults}: ` +
      'see that the device\'s driver or plugin has written its specification there (cdi_spec_dirs)'
  }
}
