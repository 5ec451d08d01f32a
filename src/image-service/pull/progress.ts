/** `present`: it was there before, or its unpacked form was. `waiting`: its turn has not come, or another pull brings it. */
export type LayerState = 'waiting' | 'downloading' | 'downloaded' | 'unpacking' | 'done' | 'present'

/** One layer (or file of an artifact) of a pull, as JSON. */
export interface LayerView {
  readonly digest: string
  readonly sizeBytes: number
  /** What is on this node, an earlier try's part included. */
  readonly storedBytes: number
  readonly state: LayerState
  /** Bytes that came off the network in this pull, by host as configured. */
  readonly from: Readonly<Record<string, number>>
}

/** One pull that runs or has just ended, as JSON. */
export interface PullView {
  /** Tells two pulls of one image apart. */
  readonly id: number
  readonly image: string
  readonly state: 'running' | 'done' | 'failed'
  /** The step that runs now, or ran last. */
  readonly step: string
  /** ISO 8601. */
  readonly since: string
  readonly ended?: string
  readonly error?: string
  /** What the name means, and the host that said so. */
  readonly digest?: string
  readonly resolvedBy?: string
  /** Hosts that served the manifests and the configuration. */
  readonly documentsFrom: readonly string[]
  /** Hosts that were asked, or skipped, and did not serve: why, the first reasons of each. */
  readonly passedOver: Readonly<Record<string, readonly string[]>>
  readonly layers: readonly LayerView[]
}

interface Layer {
  readonly digest: string
  readonly sizeBytes: number
  storedBytes: number
  state: LayerState
  readonly from: Map<string, number>
}

/** Ended pulls stay in the list for whoever followed them, this long and this many. */
const keepEndedMs = 60_000
const maxEnded = 32
const maxHosts = 32
const maxReasons = 3

/** The pulls in flight and those that ended within the last minute. Fed by the pipeline, read by the listing on the metrics address. */
export class PullProgress {
  readonly #pulls = new Set<PullTracker>()
  #count = 0

  begin(image: string): PullTracker {
    const tracker = new PullTracker(++this.#count, image)
    this.#pulls.add(tracker)
    this.#tidy()
    return tracker
  }

  /** The oldest first. */
  list(): PullView[] {
    this.#tidy()
    return [...this.#pulls].map((pull) => pull.view())
  }

  #tidy(): void {
    const ended = [...this.#pulls].filter((pull) => pull.endedMs !== undefined)
    const surplus = ended.length - maxEnded
    for (const [index, pull] of ended.entries()) if (index < surplus || (pull.endedMs ?? 0) < Date.now() - keepEndedMs) this.#pulls.delete(pull)
  }
}

/** What the pipeline says of one pull as it goes on. */
export class PullTracker {
  readonly #id: number
  readonly #image: string
  readonly #since = new Date()
  readonly #layers = new Map<string, Layer>()
  readonly #documentsFrom = new Set<string>()
  readonly #passedOver = new Map<string, Set<string>>()
  #step = 'resolve'
  #resolved: { readonly digest: string; readonly host: string } | undefined
  #ended: { readonly at: Date; readonly error: string | undefined } | undefined

  constructor(id: number, image: string) {
    this.#id = id
    this.#image = image
  }

  get endedMs(): number | undefined {
    return this.#ended?.at.getTime()
  }

  step(name: string): void {
    this.#step = name
  }

  resolved(digest: string, host: string): void {
    this.#resolved = { digest, host }
  }

  /** A host served a manifest or the configuration. */
  document(host: string): void {
    this.#documentsFrom.add(host)
  }

  passedOver(host: string, why: string): void {
    const reasons = this.#passedOver.get(host) ?? new Set()
    if (reasons.size < maxReasons) reasons.add(why)
    if (this.#passedOver.has(host) || this.#passedOver.size < maxHosts) this.#passedOver.set(host, reasons)
  }

  /** The layers as the manifest lists them; the first `present` of them are unpacked already. */
  layers(layers: readonly { readonly digest: string; readonly sizeBytes: number }[], present = 0): void {
    for (const [index, { digest, sizeBytes }] of layers.entries()) {
      // The same layer may be in an image twice.
      if (this.#layers.has(digest)) continue
      const there = index < present
      this.#layers.set(digest, { digest, sizeBytes, storedBytes: there ? sizeBytes : 0, state: there ? 'present' : 'waiting', from: new Map() })
    }
  }

  /** A layer goes on to its next state. */
  layer(digest: string, state: LayerState): void {
    const layer = this.#layers.get(digest)
    if (layer === undefined) return
    layer.state = state
    if (state !== 'waiting' && state !== 'downloading') layer.storedBytes = layer.sizeBytes
  }

  /** How much of a layer is stored. */
  stored(digest: string, bytes: number): void {
    const layer = this.#layers.get(digest)
    if (layer !== undefined) layer.storedBytes = Math.min(bytes, layer.sizeBytes)
  }

  /** Bytes of a layer came from a host. */
  received(digest: string, bytes: number, host: string): void {
    const layer = this.#layers.get(digest)
    if (layer !== undefined && (layer.from.has(host) || layer.from.size < maxHosts)) layer.from.set(host, (layer.from.get(host) ?? 0) + bytes)
  }

  /** `error`: the message that the caller gets. */
  end(error?: string): void {
    this.#ended ??= { at: new Date(), error }
  }

  view(): PullView {
    const ended = this.#ended
    return {
      id: this.#id, image: this.#image, state: ended === undefined ? 'running' : ended.error === undefined ? 'done' : 'failed', step: this.#step, since: this.#since.toISOString(),
      ...(ended === undefined ? {} : { ended: ended.at.toISOString() }),
      ...(ended?.error === undefined ? {} : { error: ended.error }),
      ...(this.#resolved === undefined ? {} : { digest: this.#resolved.digest, resolvedBy: this.#resolved.host }),
      documentsFrom: [...this.#documentsFrom],
      passedOver: Object.fromEntries([...this.#passedOver].map(([host, reasons]) => [host, [...reasons]])),
      layers: [...this.#layers.values()].map(({ digest, sizeBytes, storedBytes, state, from }) => ({ digest, sizeBytes, storedBytes, state, from: Object.fromEntries(from) })),
    }
  }
}
