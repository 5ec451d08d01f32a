import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { Code } from '../errors/cri-error.ts'
import { sendUnixDatagram } from './sd-notify.ts'
import { DatagramReceiver } from './fixture-datagrams.ts'

test('a datagram arrives at a path and at an abstract name', () => {
  const directory = mkdtempSync(join(tmpdir(), 'sd-notify-'))
  try {
    for (const name of [join(directory, 'notify'), `@cri-shim-test-${process.pid}`]) {
      using socket = new DatagramReceiver(name)
      assert.equal(socket.queued(), undefined)
      sendUnixDatagram(name, 'READY=1\nSTATUS=läuft')
      assert.equal(socket.queued(), 'READY=1\nSTATUS=läuft')
      assert.equal(socket.queued(), undefined)
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
  using socket = new DatagramReceiver(name)
  assert.throws(() => {
    for (;;) sendUnixDatagram(name, 'WATCHDOG=1')
  }, { reason: 'EAGAIN' })
  assert.equal(socket.queued(), 'WATCHDOG=1')
})
