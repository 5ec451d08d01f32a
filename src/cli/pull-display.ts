import type { LayerView, PullView } from '../image-service/pull/progress.ts'
import { shortDigest } from '../registry-mirrors/digest.ts'

/** The pull among those of a listing that a call which began at `startedMs` is part of: the newest of the image that runs or has ended since. */
export function ownPull(list: readonly PullView[], image: string, startedMs: number): PullView | undefined {
  return list.findLast((pull) => pull.image === image && (pull.ended === undefined || Date.parse(pull.ended) >= startedMs))
}

const blocks = ['', '▏', '▎', '▍', '▌', '▋', '▊', '▉']
const stateWord: Readonly<Record<LayerView['state'], string>> = { waiting: 'waiting', downloading: '', downloaded: 'downloaded', unpacking: 'unpacking', done: 'done', present: 'present' }

/** The picture of a pull for a terminal of this size: one line for the whole, one for each layer as far as there is room. */
export function bars(pull: PullView, columns: number, rows: number): string[] {
  const { layers } = pull
  const lines = [clip(headline(pull), columns)]
  const room = Math.max(rows - 3, 1)
  const finished = (layer: LayerView): boolean => layer.state === 'done' || layer.state === 'present'
  // What moves is shown first when there are more layers than lines.
  const shown = layers.length <= room ? layers : [...layers.filter((layer) => !finished(layer)), ...layers.filter(finished)].slice(0, room - 1)
  for (const layer of shown) lines.push(clip(layerLine(layer, columns), columns))
  const hidden = layers.length - shown.length
  if (hidden > 0) lines.push(clip(`  and ${hidden} more ${hidden === 1 ? 'layer' : 'layers'}`, columns))
  return lines
}

function headline(pull: PullView): string {
  const total = pull.layers.reduce((sum, layer) => sum + layer.sizeBytes, 0)
  const stored = pull.layers.reduce((sum, layer) => sum + layer.storedBytes, 0)
  const bytes = total === 0 ? '' : `  ${size(stored)} of ${size(total)}`
  return `${pull.image}  ${pull.state === 'running' ? pull.step : pull.state}${bytes}`
}

function layerLine(layer: LayerView, columns: number): string {
  const share = layer.sizeBytes === 0 ? 1 : layer.storedBytes / layer.sizeBytes
  const width = Math.max(8, Math.min(30, columns - 70))
  const eighths = Math.round(share * width * 8)
  const bar = `${'█'.repeat(Math.floor(eighths / 8))}${blocks[eighths % 8] ?? ''}`.padEnd(width)
  const state = stateWord[layer.state] === '' ? `${Math.floor(share * 100)} %` : stateWord[layer.state]
  return `  ${shortDigest(layer.digest)}  ${bar}  ${state.padEnd(10)} ${size(layer.sizeBytes).padStart(9)}  ${Object.keys(layer.from).at(-1) ?? ''}`.trimEnd()
}

/** What has happened between two looks, a line each, for output that is no terminal. */
export function changes(before: PullView | undefined, after: PullView): string[] {
  const lines: string[] = []
  if (before?.resolvedBy === undefined && after.resolvedBy !== undefined) lines.push(`${after.image} is ${after.digest ?? ''}, says ${after.resolvedBy}`)
  const old = new Map(before?.layers.map((layer) => [layer.digest, layer]))
  for (const layer of after.layers) {
    const was = old.get(layer.digest)?.state
    if (was === layer.state) continue
    const had = was !== undefined && !['waiting', 'downloading'].includes(was)
    if (layer.state === 'present') lines.push(`${shortDigest(layer.digest)} ${size(layer.sizeBytes)}: present`)
    else if (layer.state === 'downloading') lines.push(`${shortDigest(layer.digest)} ${size(layer.sizeBytes)}: downloading`)
    else if (layer.state !== 'waiting' && !had) lines.push(`${shortDigest(layer.digest)} ${size(layer.sizeBytes)}: downloaded${fromText(layer)}`)
    if (layer.state === 'done') lines.push(`${shortDigest(layer.digest)}: unpacked`)
  }
  return lines
}

/** At the end: who served what, and why others did not. */
export function summary(pull: PullView): string[] {
  const lines: string[] = []
  if (pull.resolvedBy !== undefined) lines.push(`name resolved by ${pull.resolvedBy}: ${pull.digest ?? ''}`)
  if (pull.documentsFrom.length > 0) lines.push(`manifest and configuration from ${pull.documentsFrom.join(', ')}`)
  const hosts = new Map<string, { layers: number; bytes: number }>()
  for (const layer of pull.layers) {
    for (const [host, bytes] of Object.entries(layer.from)) {
      const entry = hosts.get(host) ?? { layers: 0, bytes: 0 }
      hosts.set(host, { layers: entry.layers + 1, bytes: entry.bytes + bytes })
    }
  }
  for (const [host, { layers, bytes }] of hosts) lines.push(`${host} served ${size(bytes)} of ${layers} ${layers === 1 ? 'layer' : 'layers'}`)
  const present = pull.layers.filter((layer) => Object.keys(layer.from).length === 0).length
  if (present > 0) lines.push(`${present} ${present === 1 ? 'layer was' : 'layers were'} there already`)
  for (const [host, reasons] of Object.entries(pull.passedOver)) lines.push(`${host} was passed over: ${reasons.filter((reason, index) => !reasons.slice(0, index).some((earlier) => reason.startsWith(earlier))).join('; ')}`)
  return lines
}

function fromText(layer: LayerView): string {
  const hosts = Object.entries(layer.from)
  if (hosts.length === 0) return ' by another pull or before'
  return ` from ${hosts.map(([host, bytes]) => (hosts.length === 1 ? host : `${host} (${size(bytes)})`)).join(', ')}`
}

function size(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  let value = bytes
  let unit = 0
  for (; value >= 1024 && unit < units.length - 1; unit++) value /= 1024
  return `${unit === 0 ? value : value.toFixed(1)} ${units[unit] ?? ''}`
}

/** A line that wraps could not be drawn over. */
function clip(line: string, columns: number): string {
  return line.length > columns - 1 ? `${line.slice(0, Math.max(columns - 2, 0))}…` : line
}
