import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import koffi from 'koffi'
import { Code } from '../errors/cri-error.ts'
import { check, K, libc } from './libc.ts'
import { sendUnixDatagram, unixSocketAddress } from './sd-notify.ts'

type Syscall = (...args: (number | Uint8Array | null)[]) => number
const lib = koffi.load(null)
const bind = lib.func('bind', 'int', ['int', 'void *', 'uint']) as unknown as Syscall
const recv = lib.func('recv', 'long', ['int', 'void *', 'ulong', 'int']) as unknown as Syscall

/** A datagram socket that is really there. A datagram between unix sockets is in its queue when the send returns. */
function receiver(name: string): Disposable & { read(): string | undefined } {
  const fd = check('socket', libc.socket(1, K.SOCK_DGRAM | K.SOCK_CLOEXEC, 0))
  const address = unixSocketAddress(name)
  check('bind', bind(fd, address, address.length))
  return {
    read(): string | undefined {
      const buffer = Buffer.alloc(4096)
      const length = recv(fd, buffer, buffer.length, 0x40)
      return length < 0 ? undefined : buffer.toString('utf8', 0, length)
    },
    [Symbol.dispose]: () => void libc.close(fd),
  }
}

test('a datagram arrives at a path and at an abstract name', () => {
  const directory = mkdtempSync(join(tmpdir(), 'sd-notify-'))
  try {
    for (const name of [join(directory, 'notify'), `@cri-shim-test-${process.pid}`]) {
      using socket = receiver(name)
      assert.equal(socket.read(), undefined)
      sendUnixDatagram(name, 'READY=1\nSTATUS=läuft')
      assert.equal(socket.read(), 'READY=1\nSTATUS=läuft')
      assert.equal(socket.read(), undefined)
    }
  } finally {
    rmSync(directory, { recursive: true })
  }
})

test('nobody there, a bad name and a full queue are errors, never a wait', () => {
  assert.throws(() => sendUnixDatagram(`/nonexistent/${process.pid}`, 'x'), { code: Code.NOT_FOUND, reason: 'ENOENT' })
  assert.throws(() => sendUnixDatagram('relative', 'x'), { code: Code.INVALID_ARGUMENT })
  assert.throws(() => sendUnixDatagram(`/${'x'.repeat(107)}`, 'x'), { code: Code.INVALID_ARGUMENT })
  const name = `@cri-shim-test-full-${process.pid}`
  using socket = receiver(name)
  assert.throws(() => {
    for (;;) sendUnixDatagram(name, 'WATCHDOG=1')
  }, { reason: 'EAGAIN' })
  assert.equal(socket.read(), 'WATCHDOG=1')
})
