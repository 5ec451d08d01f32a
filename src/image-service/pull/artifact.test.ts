import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { describe, it } from 'node:test'
import { CriError } from '../../errors/cri-error.ts'
import { artifactOf, emptyConfig } from './artifact.ts'
import { choosePlatform, parseManifest } from './manifest.ts'

const digest = (text: string): string => `sha256:${createHash('sha256').update(text).digest('hex')}`
const layer = (name: unknown, key = 'org.opencontainers.image.title') => ({ descriptor: { mediaType: 'text/plain', digest: digest('x'), sizeBytes: 1 }, annotations: { [key]: name } })
const manifest = (configType: string, layerType: string, more: object = {}): Buffer => Buffer.from(JSON.stringify({
  schemaVersion: 2, config: { mediaType: configType, digest: emptyConfig.digest, size: 2 },
  layers: [{ mediaType: layerType, digest: digest('layer'), size: 5, annotations: { 'org.opencontainers.image.title': 'file' } }], ...more,
}))

describe('an artifact', () => {
  const image = 'application/vnd.oci.image.config.v1+json'
  const tar = 'application/vnd.oci.image.layer.v1.tar+gzip'

  it('is what has no image\'s configuration, or is said to be one and cannot be unpacked', () => {
    const cases: readonly (readonly [config: string, layers: string, more: object, type: string | undefined])[] = [
      ['application/vnd.oci.empty.v1+json', 'text/plain', { artifactType: 'application/vnd.example' }, 'application/vnd.example'],
      ['application/vnd.oci.empty.v1+json', tar, {}, 'application/vnd.oci.empty.v1+json'],
      ['application/vnd.cncf.helm.config.v1+json', 'application/vnd.cncf.helm.chart.content.v1.tar+gzip', {}, 'application/vnd.cncf.helm.config.v1+json'],
      [image, 'text/plain', { artifactType: 'application/vnd.example' }, 'application/vnd.example'],
      [image, tar, { artifactType: 'application/vnd.example' }, undefined], [image, tar, {}, undefined], ['application/octet-stream', tar, {}, undefined], ['', tar, {}, undefined],
    ]
    for (const [config, layers, more, type] of cases) assert.equal(parseManifest(manifest(config, layers, more), 'x').artifact?.type, type, `${config} ${layers}`)
    assert.throws(() => parseManifest(manifest(image, 'text/plain'), 'x'), (error) => error instanceof CriError && error.reason === 'NotAnImage')
  })

  it('has the files that its layers name', () => {
    const { files, problem } = artifactOf('t', [layer('a.txt'), layer('dir/b'), layer('./dir//c'), layer('model/weights', 'org.cncf.model.filepath'), layer('nameless', 'other')])
    assert.deepEqual(files.map(({ path }) => path), ['a.txt', 'dir/b', 'dir/c', 'model/weights'])
    assert.equal(problem, undefined)
  })

  it('with names that are no files of one directory can be kept, not mounted', () => {
    const cases: readonly (readonly [names: readonly unknown[], problem: RegExp])[] = [
      [['../up'], /"\.\.\/up" would be outside/], [['a/../../up'], /would be outside/], [['/etc/passwd'], /would be outside/], [[''], /no name of a file/], [['.'], /no name of a file/], [['dir/'], /no name of a file/],
      [['a\0b'], /no name of a file/], [[7], /no string/], [['same', './same'], /two files at "same"/], [['a', 'a/b'], /both a file and a directory/], [['a/b', 'a'], /two files at "a"/],
      [['x'.repeat(256)], /too long/], [['x/'.repeat(2000) + 'y'], /too long/], [[], /none of its 0 layers has a name/],
    ]
    for (const [names, problem] of cases) {
      const artifact = artifactOf('t', names.map((name) => layer(name)))
      assert.match(artifact.problem ?? '', problem, JSON.stringify(names).slice(0, 80))
      assert.deepEqual(artifact.files, [])
    }
  })

  it('in an index that names no platform is the only one there is', () => {
    const index = (...platforms: (object | undefined)[]): Buffer => Buffer.from(JSON.stringify({ manifests: platforms.map((platform, at) => ({ mediaType: 'm', digest: digest(String(at)), size: 1, platform })) }))
    const here = { os: 'linux', architecture: 'amd64' }
    assert.equal(choosePlatform(index(undefined), here, 'x').digest, digest('0'))
    assert.equal(choosePlatform(index({ os: 'unknown', architecture: 'unknown' }, undefined), here, 'x').digest, digest('1'))
    assert.throws(() => choosePlatform(index(undefined, undefined), here, 'x'), /none that names its platform/)
    assert.throws(() => choosePlatform(index(undefined, { os: 'linux', architecture: 'arm64' }), here, 'x'), /it has linux\/arm64/)
  })
})

it('the empty configuration is what its digest says', () => {
  assert.equal(`sha256:${createHash('sha256').update(emptyConfig.bytes).digest('hex')}`, emptyConfig.digest)
})
