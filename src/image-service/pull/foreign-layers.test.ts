import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { test } from 'node:test'
import { choosePlatform, parseManifest } from './manifest.ts'

const digest = (text: string): string => `sha256:${createHash('sha256').update(text).digest('hex')}`

// A manifest may name URLs of its own for a layer. A client that follows them takes its credentials to whoever wrote the manifest (CVE-2020-15157).

test('URLs in a manifest or an index go no further than its bytes', () => {
  const urls = ['https://evil.example/layer', 'http://169.254.169.254/latest/meta-data']
  const entry = (mediaType: string, name: string): object => ({ mediaType, digest: digest(name), size: 10, urls })
  const manifest = parseManifest(Buffer.from(JSON.stringify({
    schemaVersion: 2, config: entry('application/vnd.oci.image.config.v1+json', 'config'), layers: [entry('application/vnd.oci.image.layer.v1.tar+gzip', 'layer')], urls,
  })), 'x')
  const chosen = choosePlatform(Buffer.from(JSON.stringify({ manifests: [{ ...entry('application/vnd.oci.image.manifest.v1+json', 'm'), platform: { os: 'linux', architecture: 'amd64' } }] })), { os: 'linux', architecture: 'amd64' }, 'x')
  for (const descriptor of [manifest.config, ...manifest.layers, chosen]) assert.deepEqual(Object.keys(descriptor).sort(), ['digest', 'mediaType', 'sizeBytes'])
})

test('foreign and nondistributable layers are refused', () => {
  for (const type of ['application/vnd.docker.image.rootfs.foreign.diff.tar.gzip', 'application/vnd.oci.image.layer.nondistributable.v1.tar+gzip']) {
    const bytes = Buffer.from(JSON.stringify({ schemaVersion: 2, config: { mediaType: 'application/vnd.docker.container.image.v1+json', digest: digest('c'), size: 1 }, layers: [{ mediaType: type, digest: digest('l'), size: 1, urls: ['https://evil.example/'] }] }))
    assert.throws(() => parseManifest(bytes, 'x'), (error: Error) => error.message.includes(type) && !error.message.includes('evil.example'))
  }
})
