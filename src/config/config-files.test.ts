import assert from 'node:assert/strict'
import { symlinkSync } from 'node:fs'
import { test } from 'node:test'
import { readConfigFiles } from './config-files.ts'
import { Diagnostics } from './diagnostics.ts'
import { globPaths } from './glob.ts'
import { TestHost } from './test-host.ts'

function read(host: TestHost, name: string): { files: string[]; problems: string[] } {
  const diagnostics = new Diagnostics()
  const files = readConfigFiles(host.path(name), diagnostics).map((file) => file.path.slice(host.directory.length + 1))
  return { files, problems: diagnostics.list.map((d) => `${d.file?.slice(host.directory.length + 1)}:${d.line}:${d.column}: ${d.severity}: ${d.message.replaceAll(host.directory, '')}`) }
}

test('imports: patterns and paths relative to the importing file, in order, each file once, imports of imports last', () => {
  using host = new TestHost()
  host.write('a/main.toml', 'imports = ["conf.d/*.toml", "../b/other.toml", "@/abs.toml"]')
  host.write('a/conf.d/20.toml', 'imports = ["deep/x.toml"]')
  host.write('a/conf.d/10.toml', 'version = 2')
  host.write('a/conf.d/note.txt', 'not TOML')
  host.write('a/conf.d/deep/x.toml', '')
  host.write('b/other.toml', 'imports = ["../a/conf.d/10.toml"]')
  host.write('abs.toml', '')
  assert.deepEqual(read(host, 'a/main.toml'), {
    files: ['a/main.toml', 'a/conf.d/10.toml', 'a/conf.d/20.toml', 'b/other.toml', 'abs.toml', 'a/conf.d/deep/x.toml'],
    problems: [],
  })
})

test('in a cycle each file is read once, as containerd does, with a warning that names the way', () => {
  using host = new TestHost()
  host.write('a.toml', '\nimports = ["b.toml"]')
  host.write('b.toml', 'imports = [\n  "a.toml"]')
  assert.deepEqual(read(host, 'a.toml'), {
    files: ['a.toml', 'b.toml'],
    problems: ['b.toml:2:3: warning: the imports form a cycle: /a.toml → /b.toml → /a.toml; each file is read once, take one of them out'],
  })
  host.write('c/c.toml', 'imports = ["*.toml"]')
  host.write('c/d.toml', 'imports = ["*.toml"]')
  const patterns = read(host, 'c/c.toml')
  assert.deepEqual(patterns.files, ['c/c.toml', 'c/d.toml'])
  assert.match(patterns.problems.join('\n'), /^c\/d.toml:1:12: warning: the pattern \*\.toml matches a file that leads here/)
})

test('a file may import itself, as what `containerd config dump` of 1.x prints does', () => {
  using host = new TestHost()
  host.write('a.toml', 'imports = ["@/a.toml", "link.toml"]')
  symlinkSync(host.path('a.toml'), host.path('link.toml'))
  assert.deepEqual(read(host, 'a.toml'), { files: ['a.toml'], problems: [] })
  host.write('c/c.toml', 'imports = ["*.toml"]')
  assert.deepEqual(read(host, 'c/c.toml'), { files: ['c/c.toml'], problems: [] })
})

test('what cannot be read is reported where it is named', () => {
  using host = new TestHost()
  host.write('a.toml', 'imports = ["none/*.toml", "gone.toml", "bad.toml"]')
  host.write('bad.toml', 'x = 1\n[plugins\ny = 2\n')
  const { problems } = read(host, 'a.toml')
  assert.equal(problems.length, 2)
  assert.equal(problems[0], 'a.toml:1:27: error: cannot import /gone.toml: there is no such file')
  assert.match(problems[1] ?? '', /^bad.toml:2:\d+: error: not valid TOML: /)
  assert.match(read(host, 'nothing.toml').problems[0] ?? '', /^nothing.toml:0:0: error: cannot read the configuration: there is no such file/)
  host.write('type.toml', 'imports = "a.toml"')
  assert.match(read(host, 'type.toml').problems[0] ?? '', /^type.toml:1:1: error: imports must be an array of strings/)
})

test('versions', () => {
  using host = new TestHost()
  const problem = (text: string): string => {
    host.write('v.toml', text)
    return read(host, 'v.toml').problems.join('\n')
  }
  for (const version of [0, 1, 2, 3, 4]) assert.equal(problem(`version = ${version}`), '')
  assert.match(problem('version = 9'), /:1:1: error: version 9 of this file is not known here: the newest is 4/)
  assert.match(problem('version = "2"'), /error: version must be an integer/)
})

test('patterns follow Go: a leading dot is nothing special, sets, question marks, missing directories', () => {
  using host = new TestHost()
  for (const name of ['x/a1.toml', 'x/a2.toml', 'x/.hidden.toml', 'y/a1.toml', 'x/b+c.toml']) host.write(name, '')
  const glob = (pattern: string): string[] => globPaths(host.path(pattern)).map((path) => path.slice(host.directory.length + 1))
  assert.deepEqual(glob('x/*.toml'), ['x/.hidden.toml', 'x/a1.toml', 'x/a2.toml', 'x/b+c.toml'])
  assert.deepEqual(glob('*/a[1].toml'), ['x/a1.toml', 'y/a1.toml'])
  assert.deepEqual(glob('x/a?.toml'), ['x/a1.toml', 'x/a2.toml'])
  assert.deepEqual(glob('x/b+*'), ['x/b+c.toml'])
  assert.deepEqual(glob('none/*.toml'), [])
})
