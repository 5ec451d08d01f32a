import assert from 'node:assert/strict'
import { test } from 'node:test'
import protobuf from 'protobufjs'
import { genericOptions, isRuncType, runcOptions } from './runtime-options.ts'
import { unpackAny } from './any.ts'
import type { Any } from '../generated/containerd.ts'

/** As containerd's api/types/runtimeoptions/v1 has it. */
const message = protobuf.parse('syntax = "proto3"; package runtimeoptions.v1; message Options { string type_url = 1; string config_path = 2; bytes config_body = 3; }', { keepCase: true })
  .root.lookupType('runtimeoptions.v1.Options')

test('the options of other shims can be read by them', () => {
  for (const options of [
    { typeUrl: 'type.example/kata', configPath: '/etc/kata.toml', configBody: '' }, { typeUrl: '', configPath: '', configBody: 'Network = "host"\n'.repeat(40) },
    { typeUrl: 'ü', configPath: '/x', configBody: 'ä = 1' },
  ]) {
    const any = genericOptions(options)
    assert.equal(any?.type_url, 'runtimeoptions.v1.Options')
    const read = message.toObject(message.decode(any.value ?? Buffer.alloc(0)), { defaults: true, bytes: String }) as { type_url: string; config_path: string; config_body: string }
    assert.deepEqual([read.type_url, read.config_path, Buffer.from(read.config_body, 'base64').toString()], [options.typeUrl, options.configPath, options.configBody])
  }
  assert.equal(genericOptions({ typeUrl: '', configPath: '', configBody: '' }), undefined)
})

test('the options of the shim of runc are all there', () => {
  const options = {
    systemdCgroup: true, binaryName: '/usr/bin/crun', root: '/run/crun', shimCgroup: '/shims', noPivotRoot: true, noNewKeyring: true, ioUid: 7, ioGid: 8,
    criuImagePath: '/images', criuWorkPath: '/work',
  }
  const read = unpackAny('containerd.runc.v1.Options', runcOptions(options) as Any)
  assert.deepEqual({
    systemdCgroup: read?.systemd_cgroup, binaryName: read?.binary_name, root: read?.root, shimCgroup: read?.shim_cgroup, noPivotRoot: read?.no_pivot_root,
    noNewKeyring: read?.no_new_keyring, ioUid: read?.io_uid, ioGid: read?.io_gid, criuImagePath: read?.criu_image_path, criuWorkPath: read?.criu_work_path,
  }, options)
  assert.deepEqual(['io.containerd.runc.v2', 'io.containerd.kata.v2', 'io.containerd.runsc.v1'].map(isRuncType), [true, false, false])
})
