import { readFile, writeFile } from 'node:fs/promises'

/** CPU time in seconds since the process started. */
export interface CpuSeconds {
  /** All threads of the process itself. */
  readonly own: number
  /** Children that it waited for (CNI plugins, the short start of a shim), and theirs. */
  readonly children: number
}

/** Clock ticks per second in /proc/PID/stat: 100 on every architecture that Linux has today (USER_HZ). */
const ticksPerSecond = 100

/** CPU time and memory of one process, as the kernel accounts for it (proc(5)). */
export class ProcessMeter {
  readonly pid: number
  #peakBefore = 0

  constructor(pid: number) {
    this.pid = pid
  }

  async cpu(): Promise<CpuSeconds> {
    const stat = await readFile(`/proc/${this.pid}/stat`, 'utf8')
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ').map(Number) // from the third field on
    const at = (field: number): number => (fields[field - 3] ?? Number.NaN) / ticksPerSecond
    return { own: at(14) + at(15), children: at(16) + at(17) }
  }

  async #memory(name: 'VmHWM' | 'VmRSS'): Promise<number> {
    const status = await readFile(`/proc/${this.pid}/status`, 'utf8')
    return Number(new RegExp(`^${name}:\\s+(\\d+) kB$`, 'm').exec(status)?.[1]) * 1024
  }

  /** The largest resident set since the process started, in bytes. */
  async peakBytes(): Promise<number> {
    return Math.max(this.#peakBefore, await this.#memory('VmHWM'))
  }

  /** Lets `recentPeakBytes` start anew; `peakBytes` goes on as if nothing had happened. */
  async resetRecentPeak(): Promise<void> {
    this.#peakBefore = await this.peakBytes()
    await writeFile(`/proc/${this.pid}/clear_refs`, '5')
  }

  /** The largest resident set since `resetRecentPeak`, in bytes. */
  async recentPeakBytes(): Promise<number> {
    return this.#memory('VmHWM')
  }
}
