import assert from 'node:assert/strict'
import test from 'node:test'
import { Code } from '../errors/cri-error.ts'
import { SupplementalGroupsPolicy } from '../generated/cri.ts'
import { MAX_USER_FILE_BYTES, resolveUser } from './resolve-user.ts'
import { refusal } from './spec-fixtures.ts'
import { parseUser, userRequest } from './user.ts'

const { Merge, Strict } = SupplementalGroupsPolicy
const PASSWD = 'root:x:0:0:root:/root:/bin/sh\n# comment\nbroken\napp:x:1000:1001:App:/home/app:/bin/sh\nevil:x:zero:zero::/:\nhuge:x:4294967296:0::/:\nnohome:x:7:7::relative:\n'
const GROUP = 'root:x:0:\napp:x:1001:app\nwheel:x:10:root,app\naudio:x:29:other,app\nbad:x:4294967295:app\n'

test('parseUser takes every form of an image\'s USER', () => {
  const forms: [string, object][] = [
    ['', {}], ['0', { uid: 0 }], ['1000', { uid: 1000 }], ['2147483647', { uid: 2147483647 }], ['app', { username: 'app' }],
    ['1000:1001', { uid: 1000, gid: 1001 }], ['1000:staff', { uid: 1000, group: 'staff' }], ['app:staff', { username: 'app', group: 'staff' }],
    ['app:5', { username: 'app', gid: 5 }], ['app:', { username: 'app' }], [':5', { uid: 0, gid: 5 }], ['1abc', { username: '1abc' }],
  ]
  for (const [text, expected] of forms) assert.deepEqual(parseUser(text), expected, text)
})

test('parseUser refuses ids beyond 2^31-1 and what only looks like a number', () => {
  for (const text of ['2147483648', '4294967296', '4294967295', '18446744073709551616', '99999999999999999999999', '1000:2147483648', '2147483648:1']) {
    assert.throws(() => parseUser(text), refusal(Code.INVALID_ARGUMENT, /out of range/), text)
  }
  for (const text of ['00', '01000', '0x0', '-1', '+5', '1e3', '1_000', '1.0', '5:007', '0b1']) {
    assert.throws(() => parseUser(text), refusal(Code.INVALID_ARGUMENT, /looks like a number/), text)
  }
  for (const text of ['a:b:c', 'a b', 'a\nroot', 'a/b', 'a\0', 'x'.repeat(257)]) assert.throws(() => parseUser(text), refusal(Code.INVALID_ARGUMENT, /invalid USER/), text)
})

test('userRequest: the request goes before the image, a group needs a user', () => {
  const image = { User: 'app:staff' }
  const none = { run_as_user: null, run_as_group: null, run_as_username: '' }
  assert.deepEqual(userRequest(null, image), { username: 'app', group: 'staff' })
  assert.deepEqual(userRequest(none, image), { username: 'app', group: 'staff' })
  assert.deepEqual(userRequest({ ...none, run_as_user: { value: '0' } }, image), { uid: 0 })
  assert.deepEqual(userRequest({ ...none, run_as_user: { value: '5' }, run_as_group: { value: '6' } }, image), { uid: 5, gid: 6 })
  assert.deepEqual(userRequest({ run_as_user: { value: '5' }, run_as_group: { value: '6' }, run_as_username: 'web' }, image), { username: 'web', gid: 6 })
  assert.deepEqual(userRequest({ ...none, run_as_username: '1000' }, image), { uid: 1000 })
  assert.throws(() => userRequest({ ...none, run_as_group: { value: '6' } }, image), refusal(Code.INVALID_ARGUMENT, /run_as_group 6 .*without/))
  assert.throws(() => userRequest({ ...none, run_as_user: { value: '2147483648' } }, image), refusal(Code.INVALID_ARGUMENT, /run_as_user 2147483648 is out of range/))
  assert.throws(() => userRequest({ ...none, run_as_user: { value: '-1' } }, image), refusal(Code.INVALID_ARGUMENT, /out of range/))
  assert.throws(() => userRequest({ ...none, run_as_user: { value: '1' }, run_as_group: { value: '4294967296' } }, image), refusal(Code.INVALID_ARGUMENT, /run_as_group 4294967296/))
})

test('resolveUser looks names up and adds groups by policy', () => {
  assert.deepEqual(resolveUser({ username: 'app' }, PASSWD, GROUP, [], Merge), { uid: 1000, gid: 1001, additionalGids: [10, 29, 1001], username: 'app', home: '/home/app' })
  assert.deepEqual(resolveUser({ uid: 1000 }, PASSWD, GROUP, ['50'], Merge).additionalGids, [10, 29, 50, 1001])
  assert.deepEqual(resolveUser({ uid: 1000 }, PASSWD, GROUP, ['50', '50'], Strict).additionalGids, [50, 1001])
  assert.deepEqual(resolveUser({ username: 'app', group: 'audio' }, PASSWD, GROUP, [], Strict), { uid: 1000, gid: 29, additionalGids: [29], username: 'app', home: '/home/app' })
  assert.deepEqual(resolveUser({ uid: 4321 }, PASSWD, GROUP, [], Merge), { uid: 4321, gid: 0, additionalGids: [0] })
  assert.deepEqual(resolveUser({ uid: 4321, gid: 9 }, undefined, undefined, [], Merge), { uid: 4321, gid: 9, additionalGids: [9] })
  assert.deepEqual(resolveUser({}, PASSWD, GROUP, [], Merge), { uid: 0, gid: 0, additionalGids: [0, 10], username: 'root', home: '/root' })
  assert.equal(resolveUser({ uid: 7 }, PASSWD, GROUP, [], Merge).home, undefined)
  assert.equal(resolveUser({ uid: 1000, gid: 0 }, PASSWD, GROUP, [], Strict).gid, 0)
  // The user's own group is the primary one, which a requested gid replaces.
  assert.deepEqual(resolveUser({ uid: 1000, gid: 5 }, PASSWD, GROUP, [], Merge).additionalGids, [5, 10, 29])
})

test('resolveUser: junk lines make nobody root, and unknown names are named', () => {
  for (const name of ['evil', 'huge', 'ghost']) {
    assert.throws(() => resolveUser({ username: name }, PASSWD, GROUP, [], Merge), refusal(Code.INVALID_ARGUMENT, new RegExp(`no users found named "${name}" in the image's /etc/passwd`)))
  }
  assert.throws(() => resolveUser({ username: 'app' }, undefined, undefined, [], Merge), refusal(Code.INVALID_ARGUMENT, /no users found/))
  assert.throws(() => resolveUser({ uid: 1, group: 'bad' }, PASSWD, GROUP, [], Merge), refusal(Code.INVALID_ARGUMENT, /no groups found named "bad"/))
  assert.throws(() => resolveUser({}, PASSWD, GROUP, ['-1'], Merge), refusal(Code.INVALID_ARGUMENT, /supplemental_groups -1/))
  assert.throws(() => resolveUser({}, PASSWD, GROUP, [], 7), refusal(Code.INVALID_ARGUMENT, /supplemental_groups_policy 7/))
})

test('resolveUser bounds what it reads', () => {
  assert.throws(() => resolveUser({}, 'x'.repeat(MAX_USER_FILE_BYTES + 1), '', [], Merge), refusal(Code.INVALID_ARGUMENT, /exceeds 10485760 bytes/))
  assert.throws(() => resolveUser({ uid: 5 }, '\n'.repeat(200_001), '', [], Merge), refusal(Code.INVALID_ARGUMENT, /exceeds 200000 lines/))
  const groups = Array.from({ length: 65_537 }, (_, index) => `g${index}:x:${index + 1}:app`).join('\n')
  assert.throws(() => resolveUser({ username: 'app' }, PASSWD, groups, [], Merge), refusal(Code.INVALID_ARGUMENT, /more than 65536 groups/))
})
