import { lookup as systemLookup, type LookupAddress, type LookupOptions } from 'node:dns'
import type { LookupFunction } from 'node:net'

type Found = (error: NodeJS.ErrnoException | null, address: string | LookupAddress[], family?: number) => void

/**
 * Looks host names up as the system does, each once for all who ask at the same time. The system's way blocks a thread for as long as DNS is silent, and there are
 * few: the requests for one name that does not resolve would otherwise take all of them, and no other registry's name could be looked up.
 */
export class HostNames {
  readonly #asked = new Map<string, Found[]>()
  readonly #system: typeof systemLookup

  /** `system`: stands for the system in tests. */
  constructor(system: typeof systemLookup = systemLookup) {
    this.#system = system
  }

  /** For `lookup` of sockets and agents. */
  readonly lookup: LookupFunction = (name, options: LookupOptions, callback) => {
    const { family = 0, hints = 0, all = false, order, verbatim } = options
    const key = JSON.stringify([name.toLowerCase(), family, hints, all, order, verbatim])
    const waiting = this.#asked.get(key)
    if (waiting !== undefined) {
      waiting.push(callback)
      return
    }
    const listeners: Found[] = [callback]
    this.#asked.set(key, listeners)
    this.#system(name, options, (error, address, resolvedFamily) => {
      this.#asked.delete(key)
      for (const each of listeners) each(error, address, resolvedFamily)
    })
  }
}
