import assert from 'node:assert/strict'
import { it } from 'node:test'
import { ResizeParser } from './resize.ts'
import { remoteStatus } from './remote-status.ts'

const parse = (...pieces: string[]): string => {
  const parser = new ResizeParser()
  return pieces.flatMap((piece) => parser.push(Buffer.from(piece))).map(({ width, height }) => `${width}x${height}`).join(' ')
}

it('finds sizes however they are cut', () => {
  assert.equal(parse('{"Width":80,"Height":24}\n{"Width":100,', '"Height":30}', ' \n', '{"height":1,"WIDTH":2,"Other":"x"}'), '80x24 100x30 2x1')
  const text = '{"Width":80,"Height":24}\n{"Width":81,"Height":25}\n'
  assert.equal(parse(...text.split('')), '80x24 81x25')
})

it('leaves out empty sizes and stops at what is none', () => {
  assert.equal(parse('{"Width":0,"Height":24}{"Width":5}{"Width":7,"Height":8}'), '7x8')
  for (const bad of ['{"Width":65536,"Height":1}', '{"Width":-1,"Height":1}', '{"Width":1.5,"Height":1}', '{"Width":"1","Height":1}', 'x', '[1]', '{"Width"}', '{"a":{"b":1}}']) {
    assert.equal(parse('{"Width":1,"Height":1}', bad, '{"Width":2,"Height":2}'), '1x1', bad)
  }
  assert.equal(parse('{"Width":1', ' '.repeat(5000), ',"Height":1}', '{"Width":2,"Height":2}'), '', 'more than a size can have')
  assert.equal(parse(`{"Width":1,"Height":${' '.repeat(6000)}`, '1}'), '')
})

it('words the end as Kubernetes clients read it', () => {
  assert.deepEqual(remoteStatus('exec', { exitCode: 0 }), { json: '{"metadata":{},"status":"Success"}', text: '' })
  assert.deepEqual(remoteStatus('attach', { exitCode: 7 }).text, '')
  const failed = remoteStatus('exec', { exitCode: 7 }, ['sh', '-c', 'exit 7'])
  assert.deepEqual(JSON.parse(failed.json), {
    metadata: {}, status: 'Failure', reason: 'NonZeroExitCode', details: { causes: [{ reason: 'ExitCode', message: '7' }] }, message: failed.text,
  })
  assert.equal(failed.text, 'command terminated with non-zero exit code: error executing command [sh -c exit 7], exit code 7')
  const broken = remoteStatus('attach', { error: 'no container' })
  assert.deepEqual(JSON.parse(broken.json), { metadata: {}, status: 'Failure', reason: 'InternalError', code: 500, message: broken.text })
  assert.equal(broken.text, 'Internal error occurred: error attaching to container: no container')
})
