import { existsSync, type FSWatcher, realpathSync, watch } from 'node:fs'
import { dirname, parse, sep } from 'node:path'
import { errnoOf, messageOf } from '../errors/cri-error.ts'

export interface DirWatcherOptions {
  /** The directories to watch; they need not exist. */
  readonly dirs: readonly string[]
  /** Called after things have been quiet for `debounceMs`, or at the latest `maxWaitMs` after the first change. */
  readonly onChange: () => void
  /** Called when the kernel refuses a watch; it is tried again every `retryMs`. */
  readonly onProblem: (message: string) => void
  readonly debounceMs?: number
  readonly maxWaitMs?: number
  readonly retryMs?: number
}

/**
 * Watches directories that may be missing, come late, or be removed, recreated or swapped by a rename, by inotify. The entries on the way from the
 * root to each directory are watched too, so that the appearance or replacement of any of them is an event.
 */
export class DirWatcher {
  #dirs: readonly string[]
  readonly #onChange: () => void
  readonly #onProblem: (message: string) => void
  readonly #debounceMs: number
  readonly #maxWaitMs: number
  readonly #retryMs: number
  #watchers: FSWatcher[] = []
  #debounce: NodeJS.Timeout | undefined
  #retry: NodeJS.Timeout | undefined
  #firstChangeMs: number | undefined
  #rearm = false
  #closed = false
  /** What the kernel refused at the last try; empty when all is well. */
  problem = ''

  constructor(options: DirWatcherOptions) {
    this.#dirs = options.dirs
    this.#onChange = options.onChange
    this.#onProblem = options.onProblem
    this.#debounceMs = options.debounceMs ?? 100
    this.#maxWaitMs = options.maxWaitMs ?? 1000
    this.#retryMs = options.retryMs ?? 30_000
  }

  /** Begins to watch. What is read after this returns cannot be older than the first event. */
  start(): void {
    if (!this.#closed) this.#arm()
  }

  /** Watches these directories from now on. */
  setDirs(dirs: readonly string[]): void {
    if (dirs.length === this.#dirs.length && dirs.every((dir, i) => dir === this.#dirs[i])) return
    this.#dirs = dirs
    this.start()
  }

  close(): void {
    this.#closed = true
    clearTimeout(this.#debounce)
    clearTimeout(this.#retry)
    this.#disarm()
  }

  #disarm(): void {
    for (const watcher of this.#watchers) watcher.close()
    this.#watchers = []
  }

  #arm(): void {
    this.#disarm()
    clearTimeout(this.#retry)
    this.#retry = undefined
    this.#rearm = false
    const problem = this.#watchAll()
    if (problem !== '' && problem !== this.problem) this.#onProblem(problem)
    this.problem = problem
    if (problem === '') return
    this.#retry = setTimeout(() => {
      this.#arm()
      this.#onChange()
    }, this.#retryMs).unref()
  }

  #watchAll(): string {
    // From the root down: when the watch of a missing directory fails, its parent is already being watched, so its creation is not missed.
    const wanted = new Map<string, Set<string> | 'everything'>()
    for (const dir of this.#dirs) {
      for (const path of new Set([dir, realPathOf(dir)])) {
        for (let child = path; child !== parse(child).root; child = dirname(child)) {
          const names = wanted.get(dirname(child)) ?? new Set<string>()
          if (names !== 'everything') wanted.set(dirname(child), names.add(child.slice(child.lastIndexOf(sep) + 1)))
        }
        wanted.set(path, 'everything')
      }
    }
    const paths = [...wanted.keys()].sort((a, b) => a.length - b.length)
    for (const path of paths) {
      const names = wanted.get(path)
      if (names === undefined || !existsSync(path)) continue
      try {
        this.#watchOne(path, names)
      } catch (error) {
        const errno = errnoOf(error)
        if (errno === 'ENOENT' || errno === 'ENOTDIR') continue
        const remedy = errno === 'ENOSPC' || errno === 'EMFILE' ? '; raise fs.inotify.max_user_watches and fs.inotify.max_user_instances with sysctl' : ''
        return `cannot watch ${path} for changes: ${messageOf(error)}${remedy}`
      }
    }
    return ''
  }

  #watchOne(path: string, names: ReadonlySet<string> | 'everything'): void {
    const watcher = watch(path, { persistent: false }, (event, filename) => {
      if (names !== 'everything' && (event !== 'rename' || (filename !== null && !names.has(filename)))) return
      // A directory's own end comes as a rename of its own name; so does an entry of the way. Both mean that watches may point at what is gone.
      if (event === 'rename') this.#rearm = true
      this.#changed()
    })
    watcher.on('error', () => {
      this.#rearm = true
      this.#changed()
    })
    this.#watchers.push(watcher)
  }

  #changed(): void {
    if (this.#closed) return
    const now = performance.now()
    this.#firstChangeMs ??= now
    clearTimeout(this.#debounce)
    const wait = Math.min(this.#debounceMs, Math.max(0, this.#firstChangeMs + this.#maxWaitMs - now))
    this.#debounce = setTimeout(() => {
      this.#firstChangeMs = undefined
      if (this.#rearm) this.#arm()
      this.#onChange()
    }, wait).unref()
  }
}

/** The path with its links resolved as far as it exists. */
function realPathOf(path: string): string {
  for (let head = path; head !== parse(head).root; head = dirname(head)) {
    try {
      return realpathSync(head) + path.slice(head.length)
    } catch {
      continue
    }
  }
  return path
}
