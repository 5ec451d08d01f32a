import { randomUUID } from 'node:crypto'
import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { errnoOf, internal, messageOf } from '../errors/cri-error.ts'
import { isValidCniName, parseConflist } from './conflist.ts'
import { isJsonObject } from './json.ts'
import type { CachedAttachment, JsonObject, NetworkList } from './types.ts'

const kind = 'cniCacheV1'

/** What is known of one network of one container, in the file and JSON layout of libcni, so that containerd's own CRI plugin can take over and hand over. */
export interface CacheRecord extends CachedAttachment {
  /** The configuration that ADD ran with; undefined when the record does not hold one that can be read. */
  readonly list: NetworkList | undefined
  readonly netns: string
  readonly cniArgs: readonly (readonly [string, string])[]
  readonly capabilityArgs: JsonObject
  /** The last plugin's result; of the last one that succeeded while `adding`. */
  readonly result: JsonObject | undefined
  /** ADD has begun and not ended: its plugins may have made something, and may run still after a crash of this process. */
  readonly adding: boolean
}

/** The result cache: `<dir>/results/<network>-<container id>-<interface>`. */
export class ResultCache {
  readonly #results: string
  #made = false

  constructor(dir: string) {
    this.#results = join(dir, 'results')
  }

  async write(record: CacheRecord & { readonly list: NetworkList }): Promise<void> {
    const path = this.#path(record)
    const content = JSON.stringify({
      kind,
      containerId: record.containerId,
      config: Buffer.from(record.list.source).toString('base64'),
      ifName: record.ifName,
      networkName: record.network,
      netns: record.netns === '' ? undefined : record.netns,
      cniArgs: record.cniArgs.length === 0 ? undefined : record.cniArgs,
      capabilityArgs: Object.keys(record.capabilityArgs).length === 0 ? undefined : record.capabilityArgs,
      result: record.result,
      // Not libcni's, which passes over what it does not know.
      adding: record.adding ? true : undefined,
    })
    try {
      if (!this.#made) await mkdir(this.#results, { recursive: true, mode: 0o700 })
      this.#made = true
      await replaceFile(path, content, 0o600)
    } catch (error) {
      this.#made = false
      const remedy = { ENOSPC: ': free some disk space', EDQUOT: ': raise the quota', EROFS: ': its file system is read-only' }[errnoOf(error) ?? ''] ?? ''
      throw internal(`cannot keep the CNI result in ${path}${remedy} (${messageOf(error)})`, { reason: 'CNI_CACHE', cause: error })
    }
  }

  async remove(attachment: CachedAttachment): Promise<void> {
    await rm(this.#path(attachment), { force: true })
  }

  /** Every record of one container, by network and interface. `known` helps to read the names of damaged files. */
  async ofContainer(containerId: string, known: readonly string[]): Promise<CacheRecord[]> {
    if (!isValidCniName(containerId)) return []
    const names = (await this.#names()).filter((name) => name.includes(`-${containerId}-`))
    const records = await Promise.all(names.map((name) => this.#read(name, known)))
    return records.filter((record) => record !== undefined).filter((record) => record.containerId === containerId)
  }

  /** Every record. */
  async all(known: readonly string[]): Promise<CacheRecord[]> {
    const names = await this.#names()
    const records: CacheRecord[] = []
    // One at a time: a node has some hundred of them, and other file work must not wait behind all of these.
    for (const name of names) {
      const record = await this.#read(name, known)
      if (record !== undefined) records.push(record)
    }
    return records
  }

  async #names(): Promise<string[]> {
    try {
      return (await readdir(this.#results)).filter((name) => !name.startsWith('.')).sort()
    } catch (error) {
      if (errnoOf(error) === 'ENOENT') return []
      throw internal(`cannot read the CNI results in ${this.#results}: ${messageOf(error)}`, { reason: 'CNI_CACHE', cause: error })
    }
  }

  async #read(fileName: string, known: readonly string[]): Promise<CacheRecord | undefined> {
    let raw: unknown
    try {
      raw = JSON.parse(await readFile(join(this.#results, fileName), 'utf8'))
    } catch (error) {
      const errno = errnoOf(error)
      if (errno === 'ENOENT' || errno === 'EISDIR') return undefined
      if (errno !== undefined) throw internal(`cannot read the CNI result ${join(this.#results, fileName)}: ${messageOf(error)}`, { reason: 'CNI_CACHE', cause: error })
    }
    if (!isJsonObject(raw) || raw['kind'] !== kind) return damaged(fileName, known)
    const { containerId, networkName, ifName } = raw
    if (typeof containerId !== 'string' || typeof networkName !== 'string' || typeof ifName !== 'string') return damaged(fileName, known)
    // The file is found by its name again when it is removed, so both must agree.
    if (fileName !== `${networkName}-${containerId}-${ifName}`) return damaged(fileName, known)
    return {
      containerId,
      network: networkName,
      ifName,
      list: configOf(raw['config'], networkName),
      netns: typeof raw['netns'] === 'string' ? raw['netns'] : '',
      cniArgs: Array.isArray(raw['cniArgs']) ? raw['cniArgs'].filter(isPair) : [],
      capabilityArgs: isJsonObject(raw['capabilityArgs']) ? raw['capabilityArgs'] : {},
      result: isJsonObject(raw['result']) ? raw['result'] : undefined,
      adding: raw['adding'] === true,
    }
  }

  #path(attachment: CachedAttachment): string {
    return join(this.#results, `${attachment.network}-${attachment.containerId}-${attachment.ifName}`)
  }
}

/**
 * A reader sees the old or the new content, never a part. Without waiting for the disk, as that would cost each pod several of its waits; a record that a power
 * failure cuts short still says by its name what is to be released.
 */
async function replaceFile(path: string, content: string, mode: number): Promise<void> {
  const temporary = join(dirname(path), `.${basename(path)}.${randomUUID().slice(0, 8)}.tmp`)
  try {
    await writeFile(temporary, content, { mode, flag: 'wx' })
    await rename(temporary, path)
  } catch (error) {
    await rm(temporary, { force: true })
    throw error
  }
}

/** A file cut short by a power failure still says by its name what has to be released. */
function damaged(fileName: string, known: readonly string[]): CacheRecord | undefined {
  const network = known.find((name) => fileName.startsWith(`${name}-`)) ?? /^(.+)-[0-9a-f]{64}-[^-]+$/.exec(fileName)?.[1]
  if (network === undefined) return undefined
  const match = /^(.+)-([^-]+)$/.exec(fileName.slice(network.length + 1))
  if (match?.[1] === undefined || match[2] === undefined) return undefined
  return { network, containerId: match[1], ifName: match[2], list: undefined, netns: '', cniArgs: [], capabilityArgs: {}, result: undefined, adding: true }
}

function configOf(value: unknown, network: string): NetworkList | undefined {
  if (typeof value !== 'string') return undefined
  try {
    const list = parseConflist(Buffer.from(value, 'base64').toString('utf8'))
    return list.name === network ? list : undefined
  } catch {
    return undefined
  }
}

function isPair(value: unknown): value is [string, string] {
  return Array.isArray(value) && value.length === 2 && typeof value[0] === 'string' && typeof value[1] === 'string'
}
