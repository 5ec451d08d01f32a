/**
 * Which hosts are not asked again for a blob that arrived with wrong bytes. One that sent all of them did it; of several, those that broke off are suspected
 * first (a body that ends too early is the way in which junk comes), and if it was none of them the rest.
 */
export class Suspects {
  readonly #guilty = new Set<string>()
  #suspected: readonly string[] = []

  /** URLs of hosts. */
  get avoid(): string[] {
    return [...new Set([...this.#guilty, ...this.#suspected])]
  }

  /** `hosts` sent the bytes, `brokenOff` of them not all that they were asked for. */
  wrong(hosts: readonly string[], brokenOff: readonly string[]): void {
    const [only] = hosts
    if (hosts.length === 1 && only !== undefined) {
      this.#guilty.add(only)
      this.#suspected = []
      return
    }
    this.#suspected = brokenOff.length > 0 && brokenOff.length < hosts.length ? brokenOff : hosts
  }
}
