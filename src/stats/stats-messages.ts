import type { InterfaceCounters } from '../linux/usage.ts'
import { messageCodec, criProtos } from '../generated/protos.ts'
import type { Container, Sandbox } from '../state/records.ts'
import { Figure } from '../linux/usage.ts'
import { figure } from './cgroup-figures.ts'
import type { DiskUsage } from './snapshot-usage.ts'
import type { MessageWriter } from './wire.ts'

/** What a ContainerStats message is made of. */
export interface ContainerFigures {
  readonly container: Container
  /** Undefined for a container without a task. */
  readonly row: Float64Array | undefined
  /** NaN when it is not known. */
  readonly nanoCores: number
  readonly disk: DiskUsage | undefined
  /** Where the snapshotter keeps its snapshots. */
  readonly diskMountpoint: string
}

/** What a PodSandboxStats message is made of. */
export interface PodFigures {
  readonly sandbox: Sandbox
  /** Of the pod's cgroup, or the sum of its containers and the pause process. */
  readonly row: Float64Array | undefined
  readonly nanoCores: number
  /** Undefined for a pod in the host's network namespace, and when the namespace is gone. */
  readonly network: readonly InterfaceCounters[] | undefined
  /** When the network was read, in milliseconds since 1970. */
  readonly networkMs: number
  readonly containers: readonly ContainerFigures[]
}

/** Attributes stay the same for the life of a container or pod, and are most of a message: encoded once. */
const attributes = new WeakMap<object, Buffer>()

function attributesOf(name: 'ContainerAttributes' | 'PodSandboxAttributes', { id, metadata }: Container | Sandbox): Buffer {
  const known = attributes.get(metadata)
  if (known !== undefined) return known
  const { config } = metadata
  const encoded = messageCodec(criProtos(), `runtime.v1.${name}`).serialize({ id, metadata: config.metadata, labels: config.labels, annotations: config.annotations })
  attributes.set(metadata, encoded)
  return encoded
}

const nanosecondsPerMs = 1e6

/** A ContainerStats message as field `field`. What is not known is left out. */
export function writeContainerStats(out: MessageWriter, field: number, { container, row, nanoCores, disk, diskMountpoint }: ContainerFigures): void {
  out.message(field, () => {
    out.encoded(1, attributesOf('ContainerAttributes', container))
    if (row !== undefined) {
      writeCpu(out, 2, row, nanoCores)
      writeMemory(out, 3, row)
    }
    if (disk !== undefined) {
      out.message(4, () => {
        out.integer(1, disk.measuredMs * nanosecondsPerMs)
        out.message(2, () => out.string(1, diskMountpoint))
        out.wrapped(3, disk.bytes)
        out.wrapped(4, disk.inodes)
      })
    }
    if (row === undefined) return
    if (figure(row, 'swapUsage') >= 0) {
      out.message(5, () => {
        out.integer(1, timestamp(row))
        out.wrapped(2, figure(row, 'swapAvailable'))
        out.wrapped(3, figure(row, 'swapUsage'))
      })
    }
    writeIo(out, 6, row)
  })
}

/** A PodSandboxStats message as field `field`. */
export function writePodStats(out: MessageWriter, field: number, { sandbox, row, nanoCores, network, networkMs, containers }: PodFigures): void {
  out.message(field, () => {
    out.encoded(1, attributesOf('PodSandboxAttributes', sandbox))
    out.message(2, () => {
      if (row !== undefined) {
        writeCpu(out, 1, row, nanoCores)
        writeMemory(out, 2, row)
      }
      if (network !== undefined) {
        out.message(3, () => {
          out.integer(1, networkMs * nanosecondsPerMs)
          const main = network.find(({ name }) => name === 'eth0') ?? network[0]
          if (main !== undefined) writeInterface(out, 2, main)
          for (const each of network) writeInterface(out, 3, each)
        })
      }
      const counted = containers.flatMap(({ row: own }) => (own === undefined ? [] : [own]))
      const latest = counted.at(-1) ?? row
      if (latest !== undefined) {
        out.message(4, () => {
          out.integer(1, timestamp(latest))
          out.wrapped(2, counted.reduce((sum, own) => sum + (figure(own, 'tasks') || 0), 0))
        })
      }
      for (const container of containers) writeContainerStats(out, 5, container)
      if (row !== undefined) writeIo(out, 6, row)
    })
  })
}

function timestamp(row: Float64Array): number {
  return figure(row, 'wallMs') * nanosecondsPerMs
}

function writeCpu(out: MessageWriter, field: number, row: Float64Array, nanoCores: number): void {
  if (!(figure(row, 'cpuNs') >= 0)) return
  out.message(field, () => {
    out.integer(1, timestamp(row))
    out.wrapped(2, figure(row, 'cpuNs'))
    out.wrapped(3, nanoCores)
    writePressure(out, 4, row, Figure.cpuSome, Figure.cpuFull)
  })
}

function writeMemory(out: MessageWriter, field: number, row: Float64Array): void {
  if (!(figure(row, 'memoryUsage') >= 0)) return
  out.message(field, () => {
    out.integer(1, timestamp(row))
    out.wrapped(2, figure(row, 'workingSet'))
    out.wrapped(3, figure(row, 'memoryLimit') - figure(row, 'workingSet'))
    out.wrapped(4, figure(row, 'memoryUsage'))
    out.wrapped(5, figure(row, 'rss'))
    out.wrapped(6, figure(row, 'pageFaults'))
    out.wrapped(7, figure(row, 'majorPageFaults'))
    writePressure(out, 8, row, Figure.memorySome, Figure.memoryFull)
  })
}

function writeIo(out: MessageWriter, field: number, row: Float64Array): void {
  if (!hasPressure(row, Figure.ioSome) && !hasPressure(row, Figure.ioFull)) return
  out.message(field, () => {
    out.integer(1, timestamp(row))
    writePressure(out, 2, row, Figure.ioSome, Figure.ioFull)
  })
}

function hasPressure(row: Float64Array, at: number): boolean {
  return (row[at] ?? Number.NaN) >= 0
}

function writePressure(out: MessageWriter, field: number, row: Float64Array, some: number, full: number): void {
  if (!hasPressure(row, some) && !hasPressure(row, full)) return
  out.message(field, () => {
    for (const [number, at] of [[1, full], [2, some]] as const) {
      if (!hasPressure(row, at)) continue
      out.message(number, () => {
        out.integer(1, row[at] ?? 0)
        for (const average of [1, 2, 3]) out.double(average + 1, row[at + average] ?? 0)
      })
    }
  })
}

function writeInterface(out: MessageWriter, field: number, { name, rxBytes, rxErrors, txBytes, txErrors }: InterfaceCounters): void {
  out.message(field, () => {
    out.string(1, name)
    out.wrapped(2, rxBytes)
    out.wrapped(3, rxErrors)
    out.wrapped(4, txBytes)
    out.wrapped(5, txErrors)
  })
}
