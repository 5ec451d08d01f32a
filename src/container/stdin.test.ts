import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { closeSync, constants, mkdtempSync, openSync, readdirSync, readSync, rmSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { StdinHolders } from './stdin.ts'

const { O_NONBLOCK, O_RDONLY, O_WRONLY } = constants

function fifo(t: { after(work: () => void): void }): string {
  const dir = mkdtempSync(join(tmpdir(), 'cri-shim-stdin-'))
  t.after(() => rmSync(dir, { recursive: true }))
  const path = join(dir, 'stdin')
  execFileSync('mkfifo', [path])
  return path
}

/** What a non-blocking read finds: undefined while there is a writer and nothing to read. */
function read(fd: number): string | undefined {
  const buffer = Buffer.alloc(100)
  try {
    return buffer.toString('utf8', 0, readSync(fd, buffer))
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'EAGAIN') return undefined
    throw error
  }
}

test('the input stays open while nobody writes, and ends for everybody at once', (t) => {
  const path = fifo(t)
  const stdin = new StdinHolders()
  const before = readdirSync('/proc/self/fd').length
  stdin.hold('a', path)
  const shim = openSync(path, O_RDONLY | O_NONBLOCK)
  stdin.made('a')
  assert.equal(stdin.path('a'), path)
  const client = openSync(path, O_WRONLY | O_NONBLOCK)
  const told: string[] = []
  stdin.write('a', () => { told.push('stays'); closeSync(client) })
  stdin.write('a', () => told.push('leaves'))()
  writeSync(client, 'typed')
  assert.equal(read(shim), 'typed')
  assert.equal(read(shim), undefined)
  stdin.end('a')
  stdin.end('a')
  assert.deepEqual(told, ['stays'])
  assert.equal(read(shim), '', 'the end of file')
  assert.equal(stdin.path('a'), undefined, 'who attaches now has nothing to write to')
  closeSync(shim)
  stdin.release('a')
  assert.equal(readdirSync('/proc/self/fd').length, before)
})

test('we do not count as a reader: who writes to a container that has closed its input hears of it', (t) => {
  const path = fifo(t)
  const stdin = new StdinHolders()
  t.after(() => stdin.close())
  stdin.hold('a', path)
  const shim = openSync(path, O_RDONLY | O_NONBLOCK)
  stdin.made('a')
  const client = openSync(path, O_WRONLY | O_NONBLOCK)
  closeSync(shim)
  assert.throws(() => writeSync(client, 'typed'), { code: 'EPIPE' })
  closeSync(client)
})

test('after a restart: an input that is read goes on, one that was ended stays so', (t) => {
  const [read, ended] = [fifo(t), fifo(t)]
  const stdin = new StdinHolders()
  t.after(() => stdin.close())
  const shim = openSync(read, O_RDONLY | O_NONBLOCK)
  stdin.resume('a', read)
  stdin.resume('b', ended)
  assert.equal(stdin.path('a'), read)
  assert.equal(stdin.path('b'), undefined)
  closeSync(shim)
})
