import { access, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { parseDocument } from 'yaml'
import { parseQuantity } from '../../cni/quantity.ts'
import { globPaths } from '../../config/glob.ts'
import type { Settings } from '../../config/settings.ts'
import { errnoOf, failedPrecondition, invalidArgument, messageOf } from '../../errors/cri-error.ts'
import type { ContainerConfig, PodSandboxConfig } from '../../generated/cri.ts'
import type { FileStat } from '../../linux/linux.ts'
import type { Logger } from '../../observability/logger.ts'
import { type BlockDevice, blockioOf, parseBlockioClasses } from '../../oci-spec/blockio.ts'
import type { ContainerSpecInput } from '../../oci-spec/input.ts'
import { type RequestedClass, type ResourceClassKind, requestedClass } from '../../oci-spec/resource-class.ts'

export interface ResourceClassesOptions {
  readonly settings: Pick<Settings, 'blockioConfigFile' | 'rdtConfigFile' | 'ignoreBlockioNotEnabledErrors' | 'ignoreRdtNotEnabledErrors'>
  readonly log: Pick<Logger, 'warn' | 'info'>
  /** What is at a path, symbolic links followed. */
  readonly statPath: (path: string) => Promise<FileStat | undefined>
  /** Where the kernel's resctrl file system is. Default: /sys/fs/resctrl */
  readonly resctrl?: string
}

/** The root class of RDT, which everything is in that asks for none. */
const rdtRootClass = 'system/default'

/**
 * Blockio and RDT classes: what an annotation names, by the files that containerd has them from. The files are read when a container asks, so an
 * edit counts from the next container on; RDT classes are made by containerd, when it starts.
 */
export class ResourceClasses {
  readonly #options: ResourceClassesOptions

  constructor(options: ResourceClassesOptions) {
    this.#options = options
  }

  /**
   * The part of a container's spec that its classes are. INVALID_ARGUMENT for a class that is not defined or not allowed, FAILED_PRECONDITION
   * when there are no classes on this node, unless the configuration says to go on without.
   */
  async of(config: ContainerConfig, pod: PodSandboxConfig): Promise<Pick<ContainerSpecInput, 'blockIO' | 'rdtClass'>> {
    const wanted = (kind: ResourceClassKind): RequestedClass | undefined => requestedClass(kind, config.metadata?.name ?? '', config.annotations, pod.annotations)
    const [blockio, rdt] = [wanted('blockio'), wanted('rdt')]
    return { blockIO: blockio === undefined ? undefined : await this.#blockio(blockio.name), rdtClass: rdt === undefined ? undefined : await this.#rdt(rdt) }
  }

  async #blockio(name: string): Promise<ContainerSpecInput['blockIO']> {
    const { settings: { blockioConfigFile: path, ignoreBlockioNotEnabledErrors: ignore } } = this.#options
    if (path === '') return this.#notEnabled(ignore, `the container asks for the blockio class "${name}", and this node has no classes: name a file with them in blockio_config_file, or set ignore_blockio_not_enabled_errors = true`)
    let classes
    try {
      classes = parseBlockioClasses(await readYaml(path), parseQuantity)
    } catch (error) {
      return this.#notEnabled(ignore, `the container asks for the blockio class "${name}", and blockio_config_file ${path} cannot be used: ${messageOf(error)}`, error)
    }
    const entries = classes.get(name)
    if (entries === undefined) throw invalidArgument(`blockio class "${name}" is not defined in ${path}; there are ${[...classes.keys()].join(', ')}`)
    const devices = new Map<string, readonly BlockDevice[]>()
    for (const pattern of new Set(entries.flatMap((entry) => entry.devices ?? []))) {
      const found = await this.#blockDevices(pattern)
      devices.set(pattern, found)
      if (found.length === 0) this.#options.log.warn({ class: name, pattern, file: path }, 'a blockio class names devices that this node does not have: nothing is limited for them')
    }
    return blockioOf(entries, (pattern) => devices.get(pattern) ?? [])
  }

  async #rdt({ name, origin }: RequestedClass): Promise<string | undefined> {
    const { settings: { rdtConfigFile: path, ignoreRdtNotEnabledErrors: ignore }, resctrl = '/sys/fs/resctrl' } = this.#options
    if (path === '') return this.#notEnabled(ignore, `the container asks for the RDT class "${name}", and this node has no classes: name a file with them in rdt_config_file, or set ignore_rdt_not_enabled_errors = true`)
    if (!await exists(join(resctrl, 'schemata'))) {
      return this.#notEnabled(ignore, `the container asks for the RDT class "${name}", and ${resctrl} is not mounted: this node's CPU has no RDT, or its kernel does not use it; ignore_rdt_not_enabled_errors = true runs the container without a class`)
    }
    let denied
    try {
      denied = deniedOrigins(await readYaml(path), name)
    } catch (error) {
      return this.#notEnabled(ignore, `the container asks for the RDT class "${name}", and rdt_config_file ${path} cannot be used: ${messageOf(error)}`, error)
    }
    if (denied.has(origin)) throw invalidArgument(`RDT class "${name}" must not be asked for by annotations of the ${origin}: ${path} denies it`)
    if (name === rdtRootClass) return undefined
    if (name === '.' || name === '..' || /[/\n\0]/.test(name) || name.length > 255) throw invalidArgument(`RDT class ${JSON.stringify(name)} is not the name of one`)
    if (!await exists(join(resctrl, name, 'schemata'))) throw invalidArgument(`RDT class "${name}" does not exist: there is no ${join(resctrl, name)}; containerd makes the classes of ${path} when it starts`)
    return name
  }

  /** The block devices behind a path with wildcards, links followed. */
  async #blockDevices(pattern: string): Promise<readonly BlockDevice[]> {
    const found = await Promise.all(globPaths(pattern).map((path) => this.#options.statPath(path)))
    return found.filter((node) => node !== undefined).filter(({ type }) => type === 'block-device')
  }

  #notEnabled(ignore: boolean, message: string, cause?: unknown): undefined {
    if (!ignore) throw failedPrecondition(message, { reason: 'ClassesNotEnabled', cause })
    this.#options.log.info({}, `${message}: it runs without`)
  }
}

/** Whose annotations may not name the class (`partitions.*.classes.NAME.kubernetes`). */
function deniedOrigins(document: unknown, name: string): ReadonlySet<RequestedClass['origin']> {
  const denied = new Set<RequestedClass['origin']>()
  for (const partition of Object.values(child(document, 'partitions'))) {
    const kubernetes = child(child(child(partition, 'classes'), name), 'kubernetes')
    for (const [key, value] of Object.entries(kubernetes)) {
      if (value === true && key.toLowerCase() === 'denypodannotation') denied.add('pod')
      if (value === true && key.toLowerCase() === 'denycontainerannotation') denied.add('container')
    }
  }
  return denied
}

function child(value: unknown, name: string): Readonly<Record<string, unknown>> {
  const found = value !== null && typeof value === 'object' ? (value as Readonly<Record<string, unknown>>)[name] : undefined
  return found !== null && typeof found === 'object' ? found as Readonly<Record<string, unknown>> : {}
}

async function readYaml(path: string): Promise<unknown> {
  const document = parseDocument(await readFile(path, 'utf8'), { version: '1.1', uniqueKeys: true, prettyErrors: true, stringKeys: true })
  const [error] = document.errors
  if (error !== undefined) throw error
  return document.toJS({ maxAliasCount: 100 })
}

async function exists(path: string): Promise<boolean> {
  try {
    await access(path)
    return true
  } catch (error) {
    if (errnoOf(error) === 'ENOENT' || errnoOf(error) === 'ENOTDIR') return false
    throw error
  }
}
