import { type Target, memoryTargetBytes } from './operations.ts'
import type { Phase } from './phases.ts'
import type { HistogramEntry } from './prometheus.ts'
import { type OperationResult, type Results, type SideTotals, memoryMet } from './results.ts'
import { type Served, type ServedToMany, servedOnce } from './served.ts'
import { table } from './table.ts'

const ms = (value: number): string => (value < 10 ? value.toFixed(2) : value.toFixed(1))
const seconds = (value: number): string => value.toFixed(2)
const megabytes = (bytes: number | undefined): string => (bytes === undefined ? '-' : (bytes / 1e6).toFixed(1))
const quotient = (a: number, b: number): string => (b > 0 ? (a / b).toFixed(2) : '-')

function verdict(target: Target | undefined, met: boolean | undefined): string {
  if (target === undefined) return ''
  return `${boundOf(target)}: ${met === true ? 'met' : 'missed'}`
}

function boundOf(target: Target): string {
  switch (target.kind) {
    case 'ratio': return `ratio ≤ ${target.atMost.toFixed(2)}`
    case 'median': return `median ≤ ${target.atMostMs} ms`
    case 'extra': return `≤ ${target.atMostMs} ms more than ${target.over}`
    default: return `p99 ≤ ${target.atMost} × ${target.over}`
  }
}

/** With what calls that were given up leave open. */
function ratioText({ ratio, medianMs, limitMs = Infinity }: OperationResult): string {
  const [plugin, shim] = [medianMs.plugin >= limitMs, medianMs.shim >= limitMs]
  if (plugin && shim) return '-'
  return `${plugin ? '< ' : shim ? '> ' : ''}${ratio.toFixed(2)}`
}

function operationTable(results: readonly OperationResult[], [first, second]: readonly [string, string]): string {
  const rows = results.map((result) => {
    const { operation, concurrency, count, medianMs, p99Ms, limitMs = Infinity, target, met } = result
    const upTo = (value: number): string => (value >= limitMs ? `> ${limitMs}` : ms(value))
    return [operation, String(concurrency), String(count), upTo(medianMs.plugin), upTo(p99Ms.plugin), upTo(medianMs.shim), upTo(p99Ms.shim), ratioText(result), verdict(target, met)]
  })
  return table([['ms', 'at a time', 'n', `${first}: median`, 'p99', `${second}: median`, 'p99', 'ratio', 'target'], ...rows], [8])
}

const sumOf = ({ own, children }: { readonly own: number; readonly children: number }): number => own + children

/** Process, and what it waited for; the last column compares everything on the one side with everything on the other. */
function cpuTable(phases: readonly Phase[], plugin: SideTotals, shim: SideTotals): string {
  const both = shim.backend !== undefined
  const row = (name: string, a: { own: number; children: number }, b: { own: number; children: number }, behind: { own: number; children: number } | undefined): string[] => [
    name, seconds(a.own), seconds(a.children), seconds(b.own), seconds(b.children), ...(both ? [seconds(behind?.own ?? 0), seconds(behind?.children ?? 0)] : []),
    quotient(b.own, a.own), quotient(sumOf(b) + (behind === undefined ? 0 : sumOf(behind)), sumOf(a)),
  ]
  const total = ({ cpuSeconds, childrenCpuSeconds }: SideTotals['service']): { own: number; children: number } => ({ own: cpuSeconds, children: childrenCpuSeconds })
  const phaseRows = phases.flatMap(({ name, usage }) => {
    const [a, b] = [usage.get('plugin'), usage.get('shim')]
    return a === undefined || b === undefined ? [] : [row(name, a.service, b.service, b.backend)]
  })
  return table([
    ['CPU seconds', plugin.title, 'children', shim.title, 'children', ...(both ? ['its containerd', 'children'] : []), 'ratio of the service', 'ratio of all'],
    ...phaseRows,
    row('whole run', total(plugin.service), total(shim.service), shim.backend === undefined ? undefined : total(shim.backend)),
  ])
}

function memoryTable(plugin: SideTotals, shim: SideTotals): string {
  const met = memoryMet(shim)
  const target = met === undefined ? '' : `≤ ${memoryTargetBytes / 1e6}: ${met ? 'met' : 'missed'}`
  const behind = shim.backend?.peakBytes
  const head = ['Peak resident memory, MB', plugin.title, shim.title, ...(behind === undefined ? [] : ['its containerd']), 'target']
  const left = [head.length - 1]
  return table([
    head,
    ['with 100 containers', megabytes(plugin.peakBytesWith100Containers), megabytes(shim.peakBytesWith100Containers), ...(behind === undefined ? [] : ['']), target],
    ['whole run', megabytes(plugin.service.peakBytes), megabytes(shim.service.peakBytes), ...(behind === undefined ? [] : [megabytes(behind)]), ''],
  ], left)
}

/** Downloads that callers of one image do not share show as more than the image has. */
function servedText(served: ServedToMany, plugin: SideTotals, shim: SideTotals): string {
  const row = (name: string, { requests, bytes }: Served, target: string): string[] => [name, String(requests), megabytes(bytes), target]
  return `${table([
    [`Served to ${served.callers} callers of one image`, 'blob requests', 'MB', 'target'],
    ['the image has', String(served.image.blobs), megabytes(served.image.bytes), ''],
    row(plugin.title, served.most.plugin, ''),
    row(shim.title, served.most.shim, `each blob once: ${servedOnce(served) ? 'met' : 'missed'}`),
  ], [3])}\n`
}

/** What sampling and measuring cost while nobody asks. */
function idleText(plugin: SideTotals, shim: SideTotals): string {
  const [its, ours] = [plugin.idleMsPerContainerMinute, shim.idleMsPerContainerMinute]
  if (its === undefined || ours === undefined) return ''
  return `${table([['CPU while nobody asks, ms per container and minute', plugin.title, shim.backend === undefined ? shim.title : `${shim.title} and its containerd`], ['with 100 containers', its.toFixed(1), ours.toFixed(1)]])}\n`
}

/** The histogram's entries under a name, the largest sums first. */
function profileTable(title: string, entries: readonly HistogramEntry[], nameOf: (labels: HistogramEntry['labels']) => string): string {
  const rows = [...entries].sort((a, b) => b.sum - a.sum).map(({ labels, sum, count }) => [nameOf(labels), String(count), ms((sum / count) * 1000), ms(sum * 1000)])
  return table([[title, 'n', 'mean ms', 'sum ms'], ...rows])
}

/** Where cri-shim's time goes. Steps and calls overlap, so sums may exceed the time that passed. */
function profileText(phases: readonly Phase[]): string {
  const suffix = (word: string | undefined, usual: string): string => (word === usual || word === undefined ? '' : ` (${word})`)
  return phases.flatMap(({ name, profile }) => {
    if (profile === undefined) return []
    return [`Profile of cri-shim: ${name}`, '',
      profileTable('CRI call', profile.rpcs, ({ method = '', code }) => `${method}${suffix(code, 'OK')}`), '',
      ...(profile.steps.length === 0 ? [] : [profileTable('step', profile.steps, ({ operation = '', step = '', result }) => `${operation}: ${step}${suffix(result, 'ok')}`), '']),
      profileTable('call to containerd', profile.containerd, ({ method = '', code }) => `${method}${suffix(code, 'OK')}`), '']
  }).join('\n')
}

/** The whole report, as it is printed. */
export function reportText({ about, operations, totals, phases, served }: Results): string {
  const [plugin, shim] = [totals.get('plugin'), totals.get('shim')]
  if (plugin === undefined || shim === undefined) throw new TypeError('a report needs both sides')
  return [
    table(Object.entries(about).map(([name, value]) => [name, value]), [1]), '',
    operationTable(operations, [plugin.title, shim.title]), '',
    ...(served === undefined ? [] : [servedText(served, plugin, shim)]),
    cpuTable(phases, plugin, shim), '',
    memoryTable(plugin, shim), '',
    idleText(plugin, shim),
    profileText(phases),
  ].join('\n').trimEnd()
}
