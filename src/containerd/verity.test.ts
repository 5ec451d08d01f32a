import assert from 'node:assert/strict'
import { mkdir, mkdtempDisposable, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { it } from 'node:test'
import { mayUseVerity } from './verity.ts'

it('knows where containerd may switch fs-verity on', async () => {
  await using dir = await mkdtempDisposable(join(tmpdir(), 'cri-shim-verity-'))
  await mkdir(join(dir.path, 'fs/ext4/features'), { recursive: true })
  await writeFile(join(dir.path, 'fs/ext4/features/casefold'), '')
  for (const version of ['1.6.20~ds1', 'v1.7.24', '2.1.9', 'unknown']) assert.equal(await mayUseVerity(version, dir.path), false, version)
  await writeFile(join(dir.path, 'fs/ext4/features/verity'), '')
  for (const version of ['1.6.20~ds1', 'v1.7.24']) assert.equal(await mayUseVerity(version, dir.path), false, version)
  for (const version of ['2.1.9', 'v2.0.0-rc.1', '10.0.0', 'unknown']) assert.equal(await mayUseVerity(version, dir.path), true, version)
})
