import assert from 'node:assert/strict'
import { getEventListeners } from 'node:events'
import { mkdtempDisposable, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { Code, CriError } from '../errors/cri-error.ts'
import { criProtos, messageCodec } from '../generated/protos.ts'
import { fromGoJson, parseGoJson, toGoJson } from './go-json.ts'
import { displayName, repoNames } from './image-names.ts'
import { ImageStore } from './image-store.ts'
import { containerExtension, decodeContainerMetadata, decodeSandboxMetadata, encodeContainerMetadata, encodeSandboxMetadata, sandboxExtension } from './metadata.ts'
import { containerName, NameIndex, sandboxName } from './name-index.ts'
import type { Image } from './records.ts'
import { decodeStatus, encodeStatus, readJson, writeJson, writeJsonPage } from './status-file.ts'
import { Store } from './store.ts'

const code = (expected: number) => (error: unknown): boolean => error instanceof CriError && error.code === expected

/** Numbers between 0 and `below`, the same in every run. */
function random(seed: number): (below: number) => number {
  let state = seed
  return (below) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return Math.floor((state / 2 ** 32) * below)
  }
}

interface Field { readonly name: string; readonly type: string; readonly typeName: string; readonly label: string }
const wideValues = ['0', '1', '-1', '9007199254740993', '-9007199254740993', '9223372036854775807', '-9223372036854775808']

/** A message with some of its fields set to anything, every field present as decoded ones have it. */
function anyMessage(name: string, next: (below: number) => number, depth = 0): object {
  const { type } = messageCodec(criProtos(), name) as { readonly type: { readonly field: readonly Field[]; readonly nestedType: readonly { readonly name: string; readonly options?: { readonly mapEntry?: boolean } | null }[] } }
  const text = (): string => ['', 'a', 'ü"\\\n<&>', '\u2028', 'x'.repeat(300), '__proto__'][next(6)] ?? ''
  const one = (field: Field): unknown => {
    if (field.type === 'TYPE_MESSAGE') return anyMessage(field.typeName.includes('.') ? field.typeName.replace(/^\./, '') : `runtime.v1.${field.typeName}`, next, depth + 1)
    if (field.type === 'TYPE_STRING') return text()
    if (field.type === 'TYPE_BOOL') return next(2) === 1
    if (field.type === 'TYPE_BYTES') return Buffer.from([next(256), next(256)])
    if (field.type.includes('INT64')) return wideValues[next(wideValues.length)] ?? '0'
    return next(3)
  }
  const isMap = (field: Field): boolean => type.nestedType.some((nested) => nested.options?.mapEntry === true && nested.name === field.typeName)
  return Object.fromEntries(type.field.map((field) => {
    if (isMap(field)) return [field.name, Object.fromEntries(Array.from({ length: next(3) }, (_, at) => [`key-${at}`, text()]))]
    if (field.label === 'LABEL_REPEATED') return [field.name, Array.from({ length: next(3) }, () => one(field))]
    if (field.type === 'TYPE_MESSAGE' && (depth > 4 || next(3) === 0)) return [field.name, null]
    return [field.name, one(field)]
  }))
}

/** As it arrives from the wire. */
const decoded = (name: string, message: object): object => {
  const codec = messageCodec(criProtos(), name)
  return codec.deserialize(codec.serialize(message))
}

describe('Go JSON', () => {
  it('brings any configuration back as it was, 64-bit integers to the last digit', () => {
    const next = random(11)
    for (const name of ['runtime.v1.PodSandboxConfig', 'runtime.v1.ContainerConfig'] as const) {
      for (let round = 0; round < 300; round++) {
        const message = decoded(name, anyMessage(name, next))
        assert.deepEqual(fromGoJson(name, parseGoJson(JSON.stringify(toGoJson(name, message)))), message)
      }
    }
  })

  it('writes what Go would: zero values left out, integers as numbers, empty messages as {}', () => {
    const config = fromGoJson('runtime.v1.ContainerConfig', { metadata: { name: 'a' }, linux: { resources: { memory_limit_in_bytes: 5 }, security_context: {} }, envs: [{ key: 'K' }] })
    assert.equal(JSON.stringify(toGoJson('runtime.v1.ContainerConfig', config)), '{"metadata":{"name":"a"},"envs":[{"key":"K"}],"linux":{"resources":{"memory_limit_in_bytes":5},"security_context":{}}}')
    const wide = fromGoJson('runtime.v1.LinuxContainerResources', { memory_limit_in_bytes: '9223372036854775807' })
    assert.equal(JSON.stringify(toGoJson('runtime.v1.LinuxContainerResources', wide)), '{"memory_limit_in_bytes":9223372036854775807}')
  })

  it('drops what it does not know and refuses what is no object', () => {
    assert.equal((fromGoJson('runtime.v1.PodSandboxConfig', { hostname: 'h', from_the_future: { a: 1 } })).hostname, 'h')
    for (const wrong of [null, undefined, 7, 'x']) assert.throws(() => fromGoJson('runtime.v1.PodSandboxConfig', wrong), TypeError)
  })
})

describe('metadata', () => {
  it('is the same after containerd kept it', () => {
    const sandbox = {
      id: 's', name: 'a_b_c_0', config: fromGoJson('runtime.v1.PodSandboxConfig', { metadata: { name: 'a' }, labels: { x: 'y' } }), netnsPath: '/n', ips: ['10.0.0.1', 'fd00::1'],
      runtimeHandler: 'runc', cniResult: { Interfaces: {} }, processLabel: '',
    }
    const asKept = (any: ReturnType<typeof encodeSandboxMetadata>): { type_url: string; value: Buffer } => ({ type_url: any.type_url ?? '', value: Buffer.from(any.value ?? []) })
    assert.deepEqual(decodeSandboxMetadata({ [sandboxExtension]: asKept(encodeSandboxMetadata(sandbox)) }), sandbox)
    const container = { id: 'c', name: 'n', sandboxId: 's', config: fromGoJson('runtime.v1.ContainerConfig', {}), imageRef: 'sha256:1', logPath: '/l', stopSignal: 'SIGINT', processLabel: '' }
    assert.deepEqual(decodeContainerMetadata({ [containerExtension]: asKept(encodeContainerMetadata(container)) }), container)
  })

  it('says what is wrong with what cannot be read', () => {
    const extension = (text: string): Record<string, { type_url: string; value: Buffer }> => ({ [sandboxExtension]: { type_url: 'x', value: Buffer.from(text) } })
    assert.equal(decodeSandboxMetadata({}), undefined)
    for (const text of ['{', '7', '{}', '{"Version":"v2","Metadata":{}}', '{"Version":"v1","Metadata":null}', '{"Version":"v1","Metadata":{}}']) {
      assert.throws(() => decodeSandboxMetadata(extension(text)), (error) => error instanceof TypeError || error instanceof SyntaxError, text)
    }
  })
})

describe('NameIndex', () => {
  it('gives a name once, says who has it and what that is doing', () => {
    const names = new NameIndex('pod sandbox')
    names.reserve('a', 'id1', { describe: () => 'RunPodSandbox in flight for 3 s, step: cni add' })
    assert.throws(() => names.reserve('a', 'id2'), (error) => error instanceof CriError && error.code === Code.ALREADY_EXISTS && error.reason === 'InFlight' && error.message.includes('step: cni add'))
    names.settle('a')
    assert.throws(() => names.reserve('a', 'id2'), (error) => error instanceof CriError && error.reason === 'NameTaken')
    names.reserve('a', 'id1')
    names.reserve('b', 'id1')
    names.release('a', 'id2')
    assert.ok(names.holds('id1'))
    names.release('a', 'id1')
    assert.ok(names.holds('id1'))
    names.release('b', 'id1')
    names.release('b', 'id1')
    assert.ok(!names.holds('id1'))
    names.reserve('a', 'id2')
  })

  it('names things as containerd does', () => {
    const pod = { name: 'web', namespace: 'default', uid: 'u1', attempt: 2 }
    assert.equal(sandboxName(pod), 'web_default_u1_2')
    assert.equal(containerName({ name: 'main', attempt: 1 }, pod), 'main_web_default_u1_1')
  })
})

describe('Store', () => {
  const store = (): Store<{ readonly id: string; readonly n: number }> => new Store('container')

  it('finds by the beginning of an id, unless that is ambiguous', () => {
    const things = store()
    for (const id of ['abc1', 'abd2', 'ab']) things.put({ id, n: 0 })
    assert.equal(things.find('ab').id, 'ab', 'the exact one first')
    assert.equal(things.find('abc').id, 'abc1')
    assert.throws(() => things.find('a'), code(Code.FAILED_PRECONDITION))
    assert.throws(() => things.find('x'), code(Code.NOT_FOUND))
    assert.equal(things.lookup('x'), undefined)
    assert.throws(() => things.find(''), code(Code.INVALID_ARGUMENT))
    assert.throws(() => things.lookup(''), code(Code.INVALID_ARGUMENT))
  })

  it('wakes who waits, also for a removal, and leaves nothing on the signal', async () => {
    const things = store()
    things.put({ id: 'a', n: 0 })
    const stop = new AbortController()
    const two = things.until('a', ({ n }) => n === 2, stop.signal)
    const gone = things.until('a', ({ n }) => n === 9, stop.signal)
    things.update('a', (now) => ({ ...now, n: 1 }))
    things.update('a', (now) => ({ ...now, n: 2 }))
    assert.equal((await two)?.n, 2)
    things.delete('a')
    assert.equal(await gone, undefined)
    assert.equal(things.update('a', (now) => now), undefined)
    assert.equal(getEventListeners(stop.signal, 'abort').length, 0)
    things.put({ id: 'b', n: 0 })
    const never = things.until('b', () => false, stop.signal)
    stop.abort(new Error('enough'))
    await assert.rejects(never, /enough/)
  })
})

describe('ImageStore', () => {
  const image = (id: string, references: readonly string[]): Image => ({ id: `sha256:${id.padEnd(64, '0')}`, references, chainId: '', sizeBytes: 1n, pinned: false, config: {} as never, document: {} })

  it('moves a name from one image to another, and lets an image go with its last name', () => {
    const images = new ImageStore()
    images.put(image('aaa1', ['a:latest', 'a@sha256:1']))
    images.put(image('bbb2', ['a:latest']))
    assert.deepEqual([...images.values()].map(({ references }) => references), [['a@sha256:1'], ['a:latest']])
    assert.equal(images.byName('a:latest')?.id, image('bbb2', []).id)
    assert.equal(images.removeName('a@sha256:1')?.id, image('aaa1', []).id)
    assert.equal(images.size, 1)
    assert.equal(images.removeName('nobody'), undefined)
    images.put(image('bbb2', ['b:1']))
    assert.equal(images.byName('a:latest'), undefined, 'a name that an image has not any more')
  })

  it('finds by id and by a unique beginning of at least 3 digits', () => {
    const images = new ImageStore()
    images.put(image('abc1', ['a']))
    images.put(image('abd2', ['b']))
    assert.equal(images.byId('sha256:abc')?.references[0], 'a')
    assert.equal(images.byId('abd2')?.references[0], 'b')
    for (const none of ['ab', 'abe', 'sha256:', 'ABC', 'a b', '../abc']) assert.equal(images.byId(none), undefined, none)
  })

  it('tells tags from digests, and takes a tag for the name people know', () => {
    const references = ['sha256:1', 'r.io/a@sha256:2', 'r.io/a:1']
    assert.deepEqual(repoNames({ references }), { tags: ['r.io/a:1'], digests: ['r.io/a@sha256:2'] })
    assert.equal(displayName({ id: 'x', references }), 'r.io/a:1')
    assert.equal(displayName({ id: 'x', references: ['sha256:1'] }), 'x')
  })
})

describe('status files', () => {
  const stored = {
    oomKilled: true, cgroups: { v1: { memory: '/m' }, v2: '/u' },
    status: { state: 'exited' as const, pid: 0, createdAt: 1n, startedAt: 2n, finishedAt: 1_700_000_000_123_456_789n, exitCode: 137, reason: 'OOMKilled', message: 'ü' },
  }

  it('bring back what was written, in place and replaced', async () => {
    await using dir = await mkdtempDisposable(join(tmpdir(), 'cri-shim-state-'))
    const path = join(dir.path, 'new', 'status.json')
    for (const write of [writeJson, writeJsonPage, writeJsonPage]) {
      await write(path, encodeStatus(stored))
      const { ended, ...rest } = decodeStatus(await readJson(path)) ?? assert.fail()
      assert.deepEqual([rest, ended], [stored, undefined])
    }
    const long = { ...stored, status: { ...stored.status, message: 'x'.repeat(10_000) } }
    await writeJsonPage(path, encodeStatus(long))
    assert.equal(decodeStatus(await readJson(path))?.status.message.length, 10_000)
    await writeJsonPage(path, encodeStatus(stored))
    assert.equal(decodeStatus(await readJson(path))?.status.message, 'ü')
    assert.equal((await stat(path)).mode & 0o777, 0o600)
  })

  it('say nothing when a power cut left nonsense', async () => {
    await using dir = await mkdtempDisposable(join(tmpdir(), 'cri-shim-state-'))
    const path = join(dir.path, 'status.json')
    assert.equal(await readJson(path), undefined)
    for (const text of ['', '\0'.repeat(4096), '{"version":"v1"', '[]', 'null', '7', '{"version":"v2","state":"running"}', '{"version":"v1","state":"flying"}']) {
      await writeFile(path, text)
      assert.equal(decodeStatus(await readJson(path)), undefined, text)
    }
    await writeFile(path, '{"version":"v1","state":"running","pid":"7","createdAt":5,"cgroups":{"v1":[1],"v2":3}}')
    assert.deepEqual(decodeStatus(await readJson(path))?.status, { state: 'running', pid: 0, createdAt: 0n, startedAt: 0n, finishedAt: 0n, exitCode: 0, reason: '', message: '' })
  })
})
