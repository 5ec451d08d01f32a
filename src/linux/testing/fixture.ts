import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { TestContext } from 'node:test'
import { Linux, type LinuxOptions } from '../linux.ts'

export interface Fixture {
  readonly linux: Linux
  /** A directory of this test, removed at its end with whatever is still mounted in it. */
  readonly dir: string
  readonly logged: string[]
  /** Runs `cleanup` at the end of the test, before everything that was set up earlier is cleaned up. */
  readonly defer: (cleanup: () => unknown) => void
}

/** A started Linux and a directory for one test. */
export async function fixture(t: TestContext, options: Partial<LinuxOptions> = {}): Promise<Fixture> {
  const stack = new AsyncDisposableStack()
  t.after(() => stack.disposeAsync())
  const logged: string[] = []
  const log = { warn: (_: object, message: string): void => void logged.push(message), info: (_: object, message: string): void => void logged.push(message) }
  const dir = mkdtempSync(join(tmpdir(), 'cri-shim-linux-'))
  stack.defer(() => rmSync(dir, { recursive: true, force: true }))
  const linux = await Linux.start({ log, ...options })
  stack.defer(async () => {
    await linux.close()
  })
  stack.defer(async () => {
    for (const { mountPoint } of (await linux.mountsUnder(dir)).reverse()) await linux.unmount(mountPoint, { detach: true })
  })
  const defer = (cleanup: () => unknown): void => stack.defer(async () => void (await cleanup()))
  return { linux, dir, logged, defer }
}

/** A predicate for assert.rejects: the reason, and that the message names everything. */
export function failing(reason: string, ...parts: string[]): (error: unknown) => boolean {
  return (error) => {
    if (!(error instanceof Error) || !('reason' in error)) throw error
    if (error.reason !== reason) throw error
    for (const part of parts) if (!error.message.includes(part)) throw new Error(`"${error.message}" does not mention "${part}"`)
    return true
  }
}
