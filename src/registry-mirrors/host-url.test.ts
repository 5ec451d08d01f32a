import assert from 'node:assert/strict'
import { test } from 'node:test'
import { withoutSecrets } from './host-url.ts'

test('what is repeated of a URL holds nothing of its password, however that is written', () => {
  const cases: readonly (readonly [string, string])[] = [
    ['https://user:hunter2@mirror.example:5000/v2', 'https://mirror.example:5000/v2'], ['user:hunter2@mirror.example', 'mirror.example'], ['//user:hunter2@mirror.example', '//mirror.example'],
    ['https://user:hun@ter2@mirror.example', 'https://mirror.example'], ['https://user:hun/ter2@mirror.example', 'https://mirror.example'], ['https://user:hun?ter2#@mirror.example', 'https://mirror.example'],
    ['https://mirror.example/x?sig=hunter2', 'https://mirror.example/x'], ['mirror.example#hunter2', 'mirror.example'], ['https://user:hunter2\n@mirror.example', 'https://mirror.example'],
    ['harbor:5000', 'harbor:5000'], ['[fd00::1]:5000', '[fd00::1]:5000'], ['', ''],
  ]
  for (const [text, shown] of cases) assert.equal(withoutSecrets(text), shown)
})
