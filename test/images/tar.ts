/** One entry of a layer. Owner root, mode 0644 (0755 for directories and programs given so), time zero unless said otherwise. */
export type TarEntry = {
  /** Path inside the layer, without a leading slash; `.wh.NAME` and `.wh..wh..opq` are whiteouts. */
  readonly path: string
  readonly mode?: number
  readonly uid?: number
  readonly gid?: number
} & (
  | { readonly type: 'file'; readonly data: Uint8Array }
  | { readonly type: 'directory' }
  | { readonly type: 'character-device'; readonly major: number; readonly minor: number }
  | { readonly type: 'symlink' | 'hardlink'; readonly target: string }
)

const block = 512
const typeFlags = { file: '0', hardlink: '1', symlink: '2', 'character-device': '3', directory: '5' } as const

export const file = (path: string, data: Uint8Array | string, mode = 0o644): TarEntry => ({ type: 'file', path, data: Buffer.from(data), mode })
export const directory = (path: string, mode = 0o755): TarEntry => ({ type: 'directory', path, mode })
export const symlink = (path: string, target: string): TarEntry => ({ type: 'symlink', path, target })
/** The mode has to be the target's: the extractors of container runtimes set it again. */
export const hardlink = (path: string, target: string, mode: number): TarEntry => ({ type: 'hardlink', path, target, mode })

/**
 * A POSIX ustar archive: the same entries give the same bytes, always. Throws a RangeError on a path or link target that the format
 * cannot hold (100 bytes; the images have no longer one).
 */
export function tar(entries: readonly TarEntry[]): Buffer {
  const parts: Buffer[] = []
  for (const entry of entries) {
    const data = entry.type === 'file' ? entry.data : new Uint8Array()
    parts.push(header(entry, data.length), Buffer.from(data), Buffer.alloc((block - (data.length % block)) % block))
  }
  parts.push(Buffer.alloc(2 * block))
  return Buffer.concat(parts)
}

function header(entry: TarEntry, sizeBytes: number): Buffer {
  const head = Buffer.alloc(block)
  const write = (value: string, offset: number, length: number): void => {
    if (Buffer.byteLength(value) > length) throw new RangeError(`${value} is longer than the ${length} bytes that a ustar header has for it`)
    head.write(value, offset)
  }
  const octal = (value: number, offset: number, length: number): void => write(`${value.toString(8).padStart(length - 1, '0')}\0`, offset, length)
  write(entry.type === 'directory' ? `${entry.path}/` : entry.path, 0, 100)
  octal(entry.mode ?? (entry.type === 'directory' ? 0o755 : entry.type === 'symlink' ? 0o777 : 0o644), 100, 8)
  octal(entry.uid ?? 0, 108, 8)
  octal(entry.gid ?? 0, 116, 8)
  octal(sizeBytes, 124, 12)
  octal(0, 136, 12) // modification time
  write(typeFlags[entry.type], 156, 1)
  if ('target' in entry) write(entry.target, 157, 100)
  write('ustar\u000000', 257, 8) // magic, version
  if ('major' in entry) {
    octal(entry.major, 329, 8)
    octal(entry.minor, 337, 8)
  }
  head.fill(0x20, 148, 156)
  octal(head.reduce((sum, byte) => sum + byte, 0), 148, 7) // six digits, NUL, and the space that is there
  return head
}
