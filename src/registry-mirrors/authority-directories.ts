import { X509Certificate } from 'node:crypto'
import { readdir, readFile, stat } from 'node:fs/promises'
import path from 'node:path'

const maxFiles = 2000
const maxFileBytes = 1024 * 1024

interface Found {
  readonly version: string
  readonly bundle: Buffer | undefined
  readonly extra: Promise<Buffer | undefined>
}

/**
 * Authorities beside the machine's bundle, in directories that SSL_CERT_DIR names. Go reads /etc/ssl/certs without being asked: hundreds of files, which
 * on nearly every machine hold what the bundle holds, before the first connection can be made.
 */
export class AuthorityDirectories {
  readonly #directories: readonly string[]
  #found: Found | undefined

  /** `env`: SSL_CERT_DIR, with `:` between directories. */
  constructor(env: Readonly<Record<string, string | undefined>>) {
    this.#directories = (env['SSL_CERT_DIR'] ?? '').split(':').filter((dir) => dir !== '')
  }

  /** The certificates in the directories that the bundle has not, undefined when there are none. The same bytes until a directory changes. */
  async beside(bundle: Buffer | undefined): Promise<Buffer | undefined> {
    if (this.#directories.length === 0) return undefined
    const version = (await Promise.all(this.#directories.map(async (dir) => stat(dir, { bigint: true }).then(({ ino, mtimeNs }) => `${ino}:${mtimeNs}`, () => '')))).join(' ')
    if (this.#found?.version !== version || this.#found.bundle !== bundle) this.#found = { version, bundle, extra: this.#read(bundle) }
    return this.#found.extra
  }

  async #read(bundle: Buffer | undefined): Promise<Buffer | undefined> {
    const known = new Set(blocksOf(bundle?.toString('latin1') ?? ''))
    const extra: string[] = []
    for (const dir of this.#directories) {
      // What cannot be read is no authority.
      const names = await readdir(dir).catch(() => [])
      for (const name of names.slice(0, maxFiles)) {
        for (const block of blocksOf(await contentOf(path.join(dir, name)))) {
          if (known.has(block)) continue
          known.add(block)
          if (isCertificate(block)) extra.push(block)
        }
      }
    }
    return extra.length === 0 ? undefined : Buffer.from(extra.join('\n'), 'latin1')
  }
}

async function contentOf(file: string): Promise<string> {
  try {
    const info = await stat(file)
    return info.isFile() && info.size <= maxFileBytes ? (await readFile(file)).toString('latin1') : ''
  } catch {
    return ''
  }
}

/** PEM blocks without what stands around them, each the same however its lines end. */
function blocksOf(text: string): string[] {
  return (text.match(/-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----/g) ?? []).map((block) => block.replaceAll('\r', ''))
}

function isCertificate(pem: string): boolean {
  try {
    return new X509Certificate(pem).raw.length > 0
  } catch {
    return false
  }
}
