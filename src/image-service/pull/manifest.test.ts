import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { describe, it } from 'node:test'
import { Code, CriError } from '../../errors/cri-error.ts'
import { chainIds, choosePlatform, parseConfig, parseManifest } from './manifest.ts'

const digest = (text: string): string => `sha256:${createHash('sha256').update(text).digest('hex')}`
const broken = (error: unknown): boolean => error instanceof CriError && (error.code === Code.FAILED_PRECONDITION || error.code === Code.INVALID_ARGUMENT)

describe('chain ids', () => {
  it('are those of the image specification, each from all below it', () => {
    const [a, b, c] = [digest('a'), digest('b'), digest('c')]
    assert.deepEqual(chainIds([]), [])
    assert.deepEqual(chainIds([a, b, c]), [a, digest(`${a} ${b}`), digest(`${digest(`${a} ${b}`)} ${c}`)])
    let seed = 3
    for (let round = 0; round < 100; round++) {
      const ids = Array.from({ length: 1 + (seed % 7) }, () => digest(String((seed = (seed * 48_271) % 0x7fffffff))))
      const chain = chainIds(ids)
      for (let length = 1; length <= ids.length; length++) assert.deepEqual(chainIds(ids.slice(0, length)), chain.slice(0, length))
      if (ids.length > 1) assert.notEqual(chainIds(ids.toReversed()).at(-1), chain.at(-1))
    }
  })
})

describe('the choice of a platform', () => {
  const index = (...platforms: (string | undefined)[]): Buffer => Buffer.from(JSON.stringify({
    manifests: platforms.map((platform, at) => {
      const [os, architecture, variant] = platform?.split('/') ?? []
      return { mediaType: 'x', digest: digest(String(at)), size: 1, ...(platform === undefined ? {} : { platform: { os, architecture, variant } }) }
    }),
  }))
  const chosen = (wanted: string, ...platforms: (string | undefined)[]): number => {
    const [os = '', architecture = '', variant] = wanted.split('/')
    const found = choosePlatform(index(...platforms), { os, architecture, ...(variant === undefined ? {} : { variant }) }, 'image').digest
    return platforms.findIndex((_, at) => digest(String(at)) === found)
  }

  it('takes what runs here, the exact variant first, the first of equals', () => {
    assert.equal(chosen('linux/amd64', undefined, 'unknown/unknown', 'windows/amd64', 'linux/arm64', 'linux/amd64', 'linux/amd64'), 4)
    assert.equal(chosen('linux/arm64', 'linux/arm64/v9', 'linux/arm64/v8'), 1)
    assert.equal(chosen('linux/arm/v7', 'linux/arm/v5', 'linux/arm/v7', 'linux/arm/v6'), 1)
    assert.equal(chosen('linux/arm/v6', 'linux/arm/v7', 'linux/arm/v5'), 1)
    assert.equal(chosen('linux/amd64', 'linux/amd64/v3', 'linux/amd64'), 1)
  })

  it('never depends on what else is offered: any order gives the same platform', () => {
    const offered = ['linux/amd64', 'linux/arm64/v8', 'linux/arm/v7', 'linux/s390x', 'windows/amd64', 'linux/amd64/v3']
    let seed = 5
    for (let round = 0; round < 100; round++) {
      const order = offered.map((platform) => ({ platform, key: (seed = (seed * 48_271) % 0x7fffffff) })).toSorted((a, b) => a.key - b.key).map(({ platform }) => platform)
      for (const [wanted, expected] of [['linux/amd64', 'linux/amd64'], ['linux/arm64', 'linux/arm64/v8'], ['linux/s390x', 'linux/s390x']] as const) assert.equal(order[chosen(wanted, ...order)], expected)
    }
  })

  it('says what there is when nothing fits', () => {
    assert.throws(() => chosen('linux/riscv64', 'linux/amd64', 'linux/arm64/v8'), /no image for linux\/riscv64; it has linux\/amd64, linux\/arm64\/v8/)
    assert.throws(() => chosen('linux/amd64', 'linux/amd64/v3'), CriError)
  })
})

describe('hostile documents', () => {
  const layer = { mediaType: 'application/vnd.oci.image.layer.v1.tar', digest: digest('l'), size: 1 }
  const config = { mediaType: 'application/vnd.oci.image.config.v1+json', digest: digest('c'), size: 1 }
  const manifestOf = (value: unknown): Buffer => Buffer.from(typeof value === 'string' ? value : JSON.stringify(value))

  it('are refused with words, never with a TypeError', () => {
    for (const value of [
      '', '{', 'null', '[]', '7', {}, { layers: {} }, { layers: [null], config }, { layers: [], config: 7 }, { layers: [], config: null }, { layers: [layer], config: { digest: '../../etc', size: 1 } },
      { layers: [{ ...layer, size: -1 }], config }, { layers: [{ ...layer, size: 2 ** 60 }], config }, { layers: [{ ...layer, digest: 'sha256:zz' }], config }, { layers: [{ ...layer, mediaType: 'text/html' }], config },
      { layers: Array.from({ length: 513 }, () => layer), config },
    ]) assert.throws(() => parseManifest(manifestOf(value), 'image'), broken, JSON.stringify(value).slice(0, 80))
    const manifest = parseManifest(manifestOf({ layers: [layer], config }), 'image')
    for (const value of ['', 'null', {}, { rootfs: [] }, { rootfs: { diff_ids: 'x' } }, { rootfs: { diff_ids: [7] } }, { rootfs: { diff_ids: [] } }, { rootfs: { diff_ids: [digest('l')] }, config: 7 }, { rootfs: { diff_ids: [digest('l')] }, config: { Env: 'x' } }]) {
      assert.throws(() => parseConfig(manifestOf(value), manifest, 'image'), broken, JSON.stringify(value))
    }
    for (const value of ['', '{}', '{"manifests":7}', '{"manifests":[7]}']) assert.throws(() => choosePlatform(manifestOf(value), { os: 'linux', architecture: 'amd64' }, 'image'), broken)
  })
})
