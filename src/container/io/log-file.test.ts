import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { appendFileSync, mkdirSync, readFileSync, renameSync, rmSync, statSync, symlinkSync, writeFileSync, writeSync } from 'node:fs'
import { test } from 'node:test'
import { Code, CriError } from '../../errors/cri-error.ts'
import { Counters } from './counters.ts'
import { Descriptors } from '../../linux/descriptors.ts'
import { LogFile, type LogFileDeps } from './log-file.ts'
import { Scratch, openDescriptors } from './support.fixture.ts'

interface Setup extends LogFileDeps {
  readonly messages: string[]
}

function setup(write?: LogFileDeps['write']): Setup {
  const messages: string[] = []
  return {
    descriptors: new Descriptors(),
    counters: new Counters(),
    log: (level, _fields, message) => void messages.push(`${level}: ${message}`),
    messages,
    ...(write === undefined ? {} : { write }),
  }
}

function append(file: LogFile, text: string): void {
  const bytes = Buffer.from(text)
  file.append(bytes, bytes.length)
}

function failWith(code: string): never {
  throw Object.assign(new Error(`${code}: write`), { code })
}

test('appends to what is there, makes what is not, mode 0640', () => {
  using scratch = new Scratch()
  const path = scratch.file('0.log')
  const deps = setup()
  const first = new LogFile('c', path, false, deps)
  append(first, 'one\n')
  first.close()
  const second = new LogFile('c', path, false, deps)
  append(second, 'two\n')
  second.close()
  assert.equal(readFileSync(path, 'utf8'), 'one\ntwo\n')
  assert.equal(statSync(path).mode & 0o777, 0o640 & ~process.umask())
  assert.equal(deps.counters.read().bytesWritten, 8)
})

test('refuses a symlink, a FIFO, a directory and a missing directory, and leaves nothing open', () => {
  using scratch = new Scratch()
  const before = openDescriptors()
  const target = scratch.file('target')
  writeFileSync(target, 'precious\n')
  symlinkSync(target, scratch.file('link'))
  symlinkSync(scratch.file('nowhere'), scratch.file('dangling'))
  mkdirSync(scratch.file('dir'))
  scratch.fifo('fifo')
  for (const [name, message] of [['link', /symlink/], ['dangling', /symlink/], ['fifo', /not a regular file/], ['dir', /directory/], ['no/0.log', /directory does not exist/]] as const) {
    assert.throws(() => new LogFile('c', scratch.file(name), false, setup()), (error: unknown) => {
      assert.ok(error instanceof CriError)
      assert.match(error.message, message)
      assert.ok(error.message.includes(scratch.file(name)))
      return true
    })
  }
  assert.equal(readFileSync(target, 'utf8'), 'precious\n')
  assert.equal(openDescriptors(), before)
})

test('an entry that a full disk cut in two is completed before the next one', () => {
  using scratch = new Scratch()
  const path = scratch.file('0.log')
  let room = 10
  const deps = setup((fd, bytes, offset, length) => {
    if (room === 0) failWith('ENOSPC')
    const count = Math.min(length, room, 3)
    room -= count
    return writeSync(fd, bytes, offset, count)
  })
  const file = new LogFile('c', path, false, deps)
  append(file, 'aaaa\nbbbb\ncccc\n')
  assert.equal(readFileSync(path, 'utf8'), 'aaaa\nbbbb\n', 'cut between entries')
  room = 2
  append(file, 'dddd\neeee\n')
  assert.equal(readFileSync(path, 'utf8'), 'aaaa\nbbbb\ndd')
  append(file, 'ffff\n')
  room = 2
  append(file, 'gggg\n')
  assert.equal(readFileSync(path, 'utf8'), 'aaaa\nbbbb\ndddd', 'still only the rest')
  room = 100
  append(file, 'hhhh\n')
  file.close()
  assert.equal(readFileSync(path, 'utf8'), 'aaaa\nbbbb\ndddd\nhhhh\n')
  assert.equal(deps.counters.read().droppedBytes, 20)
  assert.equal(deps.counters.read().bytesWritten, 20)
  assert.ok(deps.counters.read().diskErrors >= 4)
  assert.equal(deps.messages.length, 2, deps.messages.join())
  assert.match(String(deps.messages[0]), /^error: cannot write the log of container c: ENOSPC/)
  assert.match(String(deps.messages[1]), /^info: .*works again, 20 bytes are lost/)
})

test('after a failed disk the path is opened again', async () => {
  using scratch = new Scratch()
  const before = openDescriptors()
  const path = scratch.file('0.log')
  let broken = false
  const deps = setup((fd, bytes, offset, length) => broken ? failWith('EIO') : writeSync(fd, bytes, offset, length))
  const file = new LogFile('c', path, false, deps)
  append(file, 'one\n')
  broken = true
  append(file, 'two\n')
  assert.equal(openDescriptors(), before, 'the broken file is closed')
  broken = false
  renameSync(path, scratch.file('old'))
  for (let tries = 0; statSync(path, { throwIfNoEntry: false }) === undefined; tries++) {
    assert.ok(tries < 10_000)
    append(file, 'three\n')
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
  append(file, 'four\n')
  file.close()
  assert.equal(readFileSync(scratch.file('old'), 'utf8'), 'one\n')
  assert.equal(readFileSync(path, 'utf8'), 'three\nfour\n')
  assert.equal(openDescriptors(), before)
})

test('with recover, a missing directory is waited for', async () => {
  using scratch = new Scratch()
  const deps = setup()
  const file = new LogFile('c', scratch.file('pod/0.log'), true, deps)
  append(file, 'lost\n')
  assert.equal(deps.counters.read().droppedBytes, 5)
  mkdirSync(scratch.file('pod'))
  file.reopen(() => undefined)
  append(file, 'kept\n')
  assert.equal(readFileSync(scratch.file('pod/0.log'), 'utf8'), 'kept\n')
  rmSync(scratch.file('pod'), { recursive: true })
  assert.throws(() => file.reopen(() => assert.fail('the old file is still in use')), { code: Code.FAILED_PRECONDITION })
  append(file, 'into the deleted file\n')
  assert.equal(deps.counters.read().droppedBytes, 5)
  file.close()
})

test('a file that ends in half an entry gets a newline first', () => {
  using scratch = new Scratch()
  const path = scratch.file('0.log')
  writeFileSync(path, 'one\nha')
  const file = new LogFile('c', path, false, setup())
  append(file, 'two\n')
  file.close()
  assert.equal(readFileSync(path, 'utf8'), 'one\nha\ntwo\n')
})

test('reopen: what came before is in the old file, the rest in the new one', () => {
  using scratch = new Scratch()
  const path = scratch.file('0.log')
  const file = new LogFile('c', path, false, setup())
  append(file, 'one\n')
  renameSync(path, scratch.file('old'))
  append(file, 'two\n')
  file.reopen(() => append(file, 'tail\n'))
  append(file, 'three\n')
  file.close()
  assert.equal(readFileSync(scratch.file('old'), 'utf8'), 'one\ntwo\ntail\n')
  assert.equal(readFileSync(path, 'utf8'), 'three\n')
})

test('a real full disk: nothing throws, whole entries only, and it goes on when there is room', () => {
  using scratch = new Scratch()
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'cri-shim-test', scratch.path])
  try {
    const path = scratch.file('0.log')
    const deps = setup()
    writeFileSync(scratch.file('filler'), Buffer.alloc(32 * 1024))
    const file = new LogFile('c', path, false, deps)
    const entry = `${'e'.repeat(999)}\n`
    for (let i = 0; i < 100; i++) append(file, entry.repeat(3))
    const full = deps.counters.read()
    assert.ok(full.diskErrors > 0 && full.droppedBytes > 200_000 && full.bytesWritten > 30_000, JSON.stringify(full))
    assert.throws(() => appendFileSync(scratch.file('other'), Buffer.alloc(8192)), { code: 'ENOSPC' })
    rmSync(scratch.file('filler'))
    rmSync(scratch.file('other'))
    append(file, 'after\n')
    file.close()
    const lines = readFileSync(path, 'latin1').split('\n')
    assert.deepEqual(lines.slice(-2), ['after', ''])
    assert.ok(lines.slice(0, -2).every((line) => line.length === 999))
    assert.equal(deps.messages.length, 2, deps.messages.join('\n'))
  } finally {
    execFileSync('umount', [scratch.path])
  }
})
