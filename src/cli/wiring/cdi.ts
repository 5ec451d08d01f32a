import { open, readdir } from 'node:fs/promises'
import { extname, join } from 'node:path'
import { parseDocument } from 'yaml'
import { errnoOf, messageOf } from '../../errors/cri-error.ts'
import type { ContainerConfig } from '../../generated/cri.ts'
import type { FileStat } from '../../linux/linux.ts'
import type { Logger } from '../../observability/logger.ts'
import { type CdiHostNode, type CdiInjection, hostNodePaths } from '../../oci-spec/cdi/apply.ts'
import { requestedCdiDevices } from '../../oci-spec/cdi/names.ts'
import { parseCdiSpecification } from '../../oci-spec/cdi/parse.ts'
import { type CdiFault, CdiRegistry, type CdiSource } from '../../oci-spec/cdi/registry.ts'
import type { CdiSpecification } from '../../oci-spec/cdi/specification.ts'

/** Far beyond the largest that drivers write (hundreds of devices take some hundred kilobytes). */
const maxBytes = 16 * 1024 * 1024
/** Time stamps of files are no finer than some milliseconds. */
const clockDoubtMs = 2000
const extensions = new Set(['.json', '.yaml'])

export interface CdiOptions {
  /** `cdi_spec_dirs`: of two that define one device the later wins. */
  readonly dirs: readonly string[]
  readonly log: Pick<Logger, 'warn'>
  /** What is at a path itself, symbolic links not followed. */
  readonly lstat: (path: string) => Promise<FileStat | undefined>
}

interface KnownFile {
  /** Changes whenever the file does. */
  readonly signature: string
  readonly read: Promise<CdiSpecification | CdiFault>
}

/**
 * The CDI specifications of the node. The directories are looked at whenever a container asks for a device: a device plugin writes a
 * specification in the moment before, and an inotify event may arrive after the call that needs it. Files are read again when they changed.
 */
export class CdiSpecifications {
  readonly #options: CdiOptions
  #known = new Map<string, KnownFile>()
  #told = new Set<string>()

  constructor(options: CdiOptions) {
    this.#options = options
  }

  /** What the CDI devices of a container bring. INVALID_ARGUMENT for one that is in no directory, FAILED_PRECONDITION for one that this node cannot give. */
  async injectionFor(config: ContainerConfig): Promise<CdiInjection> {
    const names = requestedCdiDevices(config)
    if (names.length === 0) return { edits: [], nodes: new Map() }
    const edits = (await this.#scan()).resolve(names)
    return { edits, nodes: new Map(await Promise.all(hostNodePaths(edits).map(async (path) => [path, nodeOf(await this.#options.lstat(path))] as const))) }
  }

  async #scan(): Promise<CdiRegistry> {
    const { dirs } = this.#options
    const known = new Map<string, KnownFile>()
    const faults: CdiFault[] = []
    const sources: CdiSource[] = []
    for (const [priority, dir] of dirs.entries()) {
      let names: string[]
      try {
        names = await readdir(dir)
      } catch (error) {
        if (errnoOf(error) !== 'ENOENT') faults.push({ path: dir, message: `the CDI directory ${dir} cannot be read: ${messageOf(error)}` })
        continue
      }
      for (const name of names.filter((file) => extensions.has(extname(file))).toSorted()) {
        const path = join(dir, name)
        const result = await this.#file(path, known)
        if (result === undefined) continue
        if ('message' in result) faults.push(result)
        else sources.push({ path, priority, specification: result })
      }
    }
    this.#known = known
    const registry = new CdiRegistry(sources, dirs, faults)
    this.#tell([...faults.map(({ message }) => message), ...registry.conflicts.map(({ device, paths }) => `CDI device ${device} is defined by ${paths.join(' and ')}, which have the same priority: nobody gets it`)])
    return registry
  }

  /** Undefined when it has gone meanwhile or is no file. */
  async #file(path: string, known: Map<string, KnownFile>): Promise<CdiSpecification | CdiFault | undefined> {
    try {
      // Without blocking: who writes there is trusted, and yet a FIFO must not hang a call.
      await using file = await open(path, 0o4000)
      const stat = await file.stat({ bigint: true })
      if (!stat.isFile()) return undefined
      const signature = [stat.dev, stat.ino, stat.size, stat.mtimeNs, stat.ctimeNs].join(' ')
      const before = this.#known.get(path)
      // One that has just been written may be written again within the same tick of the file system's clock.
      const settled = Date.now() - Number(stat.mtimeMs) > clockDoubtMs
      const entry = settled && before?.signature === signature ? before : {
        signature,
        read: stat.size > maxBytes ? Promise.resolve({ path, message: `CDI specification ${path}: it is larger than ${maxBytes} bytes` }) : file.readFile('utf8').then((content) => parse(path, content)),
      }
      known.set(path, entry)
      return await entry.read
    } catch (error) {
      known.delete(path)
      return errnoOf(error) === 'ENOENT' ? undefined : { path, message: `CDI specification ${path} cannot be read: ${messageOf(error)}` }
    }
  }

  /** Each fault once, and again when it was gone in between. */
  #tell(messages: readonly string[]): void {
    for (const message of messages) if (!this.#told.has(message)) this.#options.log.warn({ dirs: this.#options.dirs }, message)
    this.#told = new Set(messages)
  }
}

function parse(path: string, content: string): CdiSpecification | CdiFault {
  try {
    return parseCdiSpecification(extname(path) === '.json' ? JSON.parse(content) : fromYaml(content), path)
  } catch (error) {
    return { path, message: messageOf(error).startsWith('CDI specification') ? messageOf(error) : `CDI specification ${path} cannot be parsed: ${messageOf(error)}` }
  }
}

/** YAML 1.1, as Go's libraries read it: there 0660 is octal. */
function fromYaml(content: string): unknown {
  const document = parseDocument(content, { version: '1.1', uniqueKeys: true, prettyErrors: true, stringKeys: true })
  const [error] = document.errors
  if (error !== undefined) throw error
  return document.toJS({ maxAliasCount: 100 })
}

const types: Partial<Record<FileStat['type'], CdiHostNode['type']>> = { 'block-device': 'b', 'character-device': 'c', 'fifo': 'p' }

function nodeOf(stat: FileStat | undefined): CdiHostNode | undefined {
  const type = stat === undefined ? undefined : types[stat.type]
  return stat === undefined || type === undefined ? undefined : { type, major: stat.major, minor: stat.minor, fileMode: stat.mode }
}
