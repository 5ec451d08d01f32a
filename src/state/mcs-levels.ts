import { randomInt } from 'node:crypto'
import { resourceExhausted } from '../errors/cri-error.ts'

/** Of the mounts of containers without confinement (go-selinux' private mount label): never given to a pod. */
const reserved = 's0:c1022,c1023'
const randomTries = 64

/**
 * Which pod or container has which MCS level (`s0:c1,c2`): two pods with one level could read each other's files. A level is free again when the
 * last that has it is gone.
 */
export class McsLevels {
  readonly #range: number
  readonly #owners = new Map<string, Set<string>>()
  readonly #levelOf = new Map<string, string>()

  /** `range`: how many categories there are to choose from (`selinux_category_range`), 0 for the policy's 1024. */
  constructor(range: number) {
    this.#range = range <= 0 ? 1024 : range
    this.#owners.set(reserved, new Set(['']))
  }

  get size(): number {
    return this.#levelOf.size
  }

  /** A level that nobody has, for this owner. RESOURCE_EXHAUSTED when all are taken. */
  allocate(owner: string): string {
    for (let tries = 0; tries < randomTries && this.#range > 1; tries++) {
      const [a, b] = [randomInt(this.#range), randomInt(this.#range)]
      const level = `s0:c${Math.min(a, b)},c${Math.max(a, b)}`
      if (a !== b && !this.#owners.has(level)) return this.#take(level, owner)
    }
    for (let low = 0; low < this.#range; low++) {
      for (let high = low + 1; high < this.#range; high++) {
        const level = `s0:c${low},c${high}`
        if (!this.#owners.has(level)) return this.#take(level, owner)
      }
    }
    throw resourceExhausted(`all ${this.#range * (this.#range - 1) / 2} SELinux levels of ${this.#range} categories are in use: set selinux_category_range to a larger number, up to 1024`, { reason: 'NoSelinuxLevel' })
  }

  /** Notes that an owner has the level of a label, which may be shared. What has no categories is nobody's. */
  reserve(label: string, owner: string): void {
    const level = label.split(':').slice(3).join(':')
    if (!level.includes(':c') || this.#levelOf.get(owner) === level) return
    this.release(owner)
    this.#take(level, owner)
  }

  /** The owner is gone. OK for one that had none. */
  release(owner: string): void {
    const level = this.#levelOf.get(owner)
    if (level === undefined) return
    this.#levelOf.delete(owner)
    const owners = this.#owners.get(level)
    owners?.delete(owner)
    if (owners?.size === 0) this.#owners.delete(level)
  }

  #take(level: string, owner: string): string {
    this.#owners.set(level, (this.#owners.get(level) ?? new Set()).add(owner))
    this.#levelOf.set(owner, level)
    return level
  }
}
