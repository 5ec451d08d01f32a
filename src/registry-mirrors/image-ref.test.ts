import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Code, CriError } from '../errors/cri-error.ts'
import { normalizeRef, parseImageRef } from './image-ref.ts'

const hex = 'a'.repeat(64)

test('names are completed by Docker’s rules', () => {
  const cases: readonly (readonly [string, string, string])[] = [
    ['busybox', 'docker.io/library/busybox:latest', 'busybox:latest'],
    ['busybox:1.36', 'docker.io/library/busybox:1.36', 'busybox:1.36'],
    ['library/busybox', 'docker.io/library/busybox:latest', 'busybox:latest'],
    ['docker.io/busybox', 'docker.io/library/busybox:latest', 'busybox:latest'],
    ['index.docker.io/busybox', 'docker.io/library/busybox:latest', 'busybox:latest'],
    ['grafana/loki:3', 'docker.io/grafana/loki:3', 'grafana/loki:3'],
    ['docker.io/library/a/b', 'docker.io/library/a/b:latest', 'library/a/b:latest'],
    // Docker's short form of these is another image, or an image's id.
    ['docker.io/reg.example/app', 'docker.io/reg.example/app:latest', 'docker.io/reg.example/app:latest'],
    ['docker.io/localhost/app', 'docker.io/localhost/app:latest', 'docker.io/localhost/app:latest'],
    ['docker.io/index.docker.io/app', 'docker.io/index.docker.io/app:latest', 'docker.io/index.docker.io/app:latest'],
    [`docker.io/library/sha256:${hex}`, `docker.io/library/sha256:${hex}`, `docker.io/library/sha256:${hex}`],
    ['localhost', 'docker.io/library/localhost:latest', 'localhost:latest'],
    ['localhost/x', 'localhost/x:latest', 'localhost/x:latest'],
    ['localhost:5000/x', 'localhost:5000/x:latest', 'localhost:5000/x:latest'],
    ['registry.k8s.io/pause:3.10', 'registry.k8s.io/pause:3.10', 'registry.k8s.io/pause:3.10'],
    ['[fd00::1]:5000/x/y:1', '[fd00::1]:5000/x/y:1', '[fd00::1]:5000/x/y:1'],
    ['[::1]/x', '[::1]/x:latest', '[::1]/x:latest'],
    ['REG/x', 'REG/x:latest', 'REG/x:latest'],
    [`busybox@sha256:${hex}`, `docker.io/library/busybox@sha256:${hex}`, `busybox@sha256:${hex}`],
    [`reg.example:5000/a/b__c.d--e:v1_2.X@sha256:${hex}`, `reg.example:5000/a/b__c.d--e@sha256:${hex}`, `reg.example:5000/a/b__c.d--e@sha256:${hex}`],
  ]
  for (const [text, canonical, familiar] of cases) {
    assert.equal(normalizeRef(text), canonical, text)
    assert.equal(parseImageRef(text).familiar, familiar, text)
    assert.equal(normalizeRef(canonical), canonical, 'normal names stay as they are')
    assert.equal(normalizeRef(familiar), canonical, 'the short form is the same image')
  }
})

test('the parts of a reference', () => {
  const ref = parseImageRef('[fd00::1]:5000/team/app:2.0')
  assert.deepEqual([ref.registry, ref.repository, ref.name, ref.tag, ref.digest], ['[fd00::1]:5000', 'team/app', '[fd00::1]:5000/team/app', '2.0', undefined])
  const pinned = parseImageRef(`busybox:1.36@sha512:${'b'.repeat(128)}`)
  assert.deepEqual([pinned.tag, pinned.digest], [undefined, `sha512:${'b'.repeat(128)}`])
})

test('a name that breaks the grammar is refused with the reason', () => {
  const cases: readonly (readonly [string, RegExp])[] = [
    ['', /empty/],
    ['https://reg.example/app', /without https:\/\//],
    ['busy box', /white space/],
    [hex, /image id/],
    ['Busybox', /lower case/],
    ['docker.io/library/Busybox:1', /lower case/],
    ['busybox:', /nothing follows the :/],
    ['busybox:-1', /is not a tag/],
    [`busybox:${'t'.repeat(129)}`, /129 characters/],
    ['busybox:a:b', /is not a tag/],
    ['busybox@', /nothing follows the @/],
    ['busybox@sha256:abc', /3 hex digits instead of 64/],
    [`busybox@sha256:${'A'.repeat(64)}`, /lower case/],
    [`busybox@md5:${'a'.repeat(32)}`, /md5.*not supported/],
    [`busybox@constructor:${'a'.repeat(32)}`, /not supported/],
    ['a//b', /slash too many/],
    ['reg.example/', /missing/],
    ['a/b/', /slash too many/],
    ['-reg.example/x', /not a registry host/],
    ['reg..example/x', /not a registry host/],
    ['../x', /not a registry host/],
    ['reg.example:99999/x', /not a port/],
    ['reg.example:/x', /not a registry host/],
    ['[fd00::1%eth0]:5000/x', /not a registry host/],
    ['http://reg.example/x', /without http:\/\//],
    ['busy..box', /not allowed/],
    ['a/_b', /not allowed/],
    [`a/${'x'.repeat(300)}`, /302 characters/],
  ]
  for (const [text, why] of cases) {
    assert.throws(() => parseImageRef(text), (error) => {
      assert.ok(error instanceof CriError, text)
      assert.equal(error.code, Code.INVALID_ARGUMENT)
      assert.match(error.message, why, `for ${JSON.stringify(text)}`)
      return true
    })
  }
})
