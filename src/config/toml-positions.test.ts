import assert from 'node:assert/strict'
import { readFileSync, readdirSync } from 'node:fs'
import { test } from 'node:test'
import { parse } from 'smol-toml'
import { scanTomlPositions } from './toml-positions.ts'

function at(text: string, ...path: string[]): string {
  const position = scanTomlPositions(text).get(path)
  return position === undefined ? 'nowhere' : `${position.line}:${position.column}`
}

test('keys, quoted keys, dotted keys and table headers', () => {
  const text = [
    'top = 1 # [not.a.table]',
    '[ plugins . "io.containerd.grpc.v1.cri" . \'x.y\' ]',
    '  a.b = { c = 1, "d e" = [1, 2], f.g = true }',
    'str = """',
    'k = "not a key"',
    '[neither]""""',
    "lit = '''",
    "]] '''",
    'esc = "a\\"b = 1" # "',
    'list = [ # comment ]',
    '  "x", # y',
    '  { z = 1 },',
    ']',
    '[[array.of]]',
    'n = 1',
    '[[array.of]]',
    'n = 2',
    '[array.of.sub]',
    'm = 3',
    '"q\\u00e9\\t" = 1',
  ].join('\n')
  const table = ['plugins', 'io.containerd.grpc.v1.cri', 'x.y']
  assert.equal(at(text, 'top'), '1:1')
  assert.equal(at(text, ...table), '2:3')
  assert.equal(at(text, ...table, 'a'), '3:3')
  assert.equal(at(text, ...table, 'a', 'b'), '3:3')
  assert.equal(at(text, ...table, 'a', 'b', 'c'), '3:11')
  assert.equal(at(text, ...table, 'a', 'b', 'd e'), '3:18')
  assert.equal(at(text, ...table, 'a', 'b', 'd e', '1'), '3:30')
  assert.equal(at(text, ...table, 'a', 'b', 'f', 'g'), '3:34')
  assert.equal(at(text, ...table, 'str'), '4:1')
  assert.equal(at(text, ...table, 'k'), 'nowhere')
  assert.equal(at(text, 'neither'), 'nowhere')
  assert.equal(at(text, ...table, 'lit'), '7:1')
  assert.equal(at(text, ...table, 'esc'), '9:1')
  assert.equal(at(text, ...table, 'list', '1', 'z'), '12:5')
  assert.equal(at(text, 'array', 'of', '0', 'n'), '15:1')
  assert.equal(at(text, 'array', 'of', '1', 'n'), '17:1')
  assert.equal(at(text, 'array', 'of', '1', 'sub', 'm'), '19:1')
  assert.equal(at(text, 'array', 'of', '1', 'sub', 'qé\t'), '20:1')
})

test('a header of a child does not hide the header of its parent; a parent without one is found at its first child', () => {
  const text = '[a.b.c]\nx = 1\n[a.b]\ny = 1\n'
  assert.equal(at(text, 'a', 'b'), '3:2')
  assert.deepEqual(scanTomlPositions(text).near(['a', 'b', 'gone']), { line: 3, column: 2 })
  assert.deepEqual(scanTomlPositions(text).near(['z']), { line: 1, column: 1 })
})

test('CRLF files count lines the same', () => {
  assert.equal(at('a = 1\r\n\r\n[t]\r\nb = "x"\r\n', 't', 'b'), '4:1')
})

test('every key that the parser finds in a real file has a position on a line that names it', () => {
  const directory = new URL('../../test/fixtures/config/', import.meta.url)
  for (const name of readdirSync(directory)) {
    const text = readFileSync(new URL(name, directory), 'utf8')
    const lines = text.split('\n')
    const positions = scanTomlPositions(text)
    let count = 0
    const visit = (value: unknown, path: readonly string[]): void => {
      if (typeof value !== 'object' || value === null || Array.isArray(value)) {
        const position = positions.get(path)
        assert.ok(position, `${name}: ${path.join(' ')}`)
        const rest = (lines[position.line - 1]?.slice(position.column - 1) ?? '').replace(/^["']/, '')
        assert.ok(rest.startsWith(path.at(-1) ?? '?'), `${name}:${position.line}:${position.column}: ${path.join(' ')}`)
        count++
        return
      }
      for (const [key, child] of Object.entries(value)) visit(child, [...path, key])
    }
    visit(parse(text), [])
    assert.ok(count > 10, `${name}: ${count} keys`)
  }
})

test('a table that only tables inside of it imply is near the first of those', () => {
  const positions = scanTomlPositions('a = 1\n[[b.c]]\n[[b.c]]\n[d."e.f".g]\n[d.h]\n')
  assert.deepEqual([['b'], ['d'], ['d', 'e.f'], ['d', 'e.f', 'gone'], ['d', 'h']].map((path) => positions.near(path).line), [2, 4, 4, 4, 5])
  assert.equal(positions.get(['d']), undefined)
})
