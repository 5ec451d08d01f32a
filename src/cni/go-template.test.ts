import assert from 'node:assert/strict'
import { test } from 'node:test'
import { GoTemplate } from './go-template.ts'

const data = { PodCIDR: '10.222.1.0/24', PodCIDRRanges: ['10.222.1.0/24', 'fd00:10:222::/64'], Routes: ['0.0.0.0/0', '::/0'] }
const render = (source: string): string => new GoTemplate(source).render(data)

test('renders what Go renders', () => {
  // Expected values as printed by Go's text/template.
  const cases: readonly [string, string][] = [
    ['plain', 'plain'],
    ['{{.PodCIDR}}', '10.222.1.0/24'],
    ['{{ .PodCIDR }}!', '10.222.1.0/24!'],
    ['{{$.PodCIDR}}', '10.222.1.0/24'],
    ['{{.Routes}}', '[0.0.0.0/0 ::/0]'],
    ['{{range .Routes}}<{{.}}>{{end}}', '<0.0.0.0/0><::/0>'],
    ['{{range $i, $r := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$r}}"}]{{end}}', '[{"subnet": "10.222.1.0/24"}], [{"subnet": "fd00:10:222::/64"}]'],
    ['{{range $r := .Routes}}{{$r}} {{end}}', '0.0.0.0/0 ::/0 '],
    ['a {{- range .Routes }}\n  {{ . -}}\n{{ end -}} \n b', 'a\n  0.0.0.0/0\n  ::/0b'],
    ['a{{/* a comment with }} in it */}}b', 'ab'],
    ['a {{- /* trimmed */ -}} b', 'ab'],
    ['{{if eq (len .Routes) 2}}two{{else}}other{{end}}', 'two'],
    ['{{if gt (len .Routes) 2}}many{{else if eq (index .Routes 0) "0.0.0.0/0"}}v4{{else}}none{{end}}', 'v4'],
    ['{{if and .PodCIDR (not .Routes)}}x{{else}}y{{end}}', 'y'],
    ['{{with .PodCIDR}}{{.}}{{end}}', '10.222.1.0/24'],
    ['{{index .Routes 1}}', '::/0'],
    ['{{.Routes | len}}', '2'],
    ['{{$x := .PodCIDR}}{{range .Routes}}{{$x}} {{end}}', '10.222.1.0/24 10.222.1.0/24 '],
    ['{{$n := 0}}{{range $i, $r := .Routes}}{{$n = $i}}{{end}}{{$n}}', '1'],
    ['{{"quoted }} \\"text\\""}}', 'quoted }} "text"'],
    ['{{`raw`}}', 'raw'],
    ['{{print 1 2 "a" "b" true}}', '1 2abtrue'],
    ['{{range .Routes}}{{$.PodCIDR}};{{end}}', '10.222.1.0/24;10.222.1.0/24;'],
  ]
  for (const [source, expected] of cases) assert.equal(render(source), expected, source)
})

test('an empty list takes the else branch of range', () => {
  assert.equal(new GoTemplate('{{range .Routes}}x{{else}}none{{end}}').render({ Routes: [] }), 'none')
  assert.equal(new GoTemplate('{{if .Routes}}x{{else}}none{{end}}').render({ Routes: [] }), 'none')
})

test('what is not understood is an error with its place', () => {
  const cases: readonly [string, RegExp][] = [
    ['one\ntwo {{.PodCidr}}', /^line 2, column 7: there is no field \.PodCidr; these are: \.PodCIDR, \.PodCIDRRanges, \.Routes$/],
    ['{{printf "%s" .PodCIDR}}', /^line 1, column 3: the function "printf" is not supported/],
    ['{{range .Routes}}', /^line 1, column 3: \{\{range\}\} without \{\{end\}\}$/],
    ['{{if .Routes}}{{else}}', /without \{\{end\}\}/],
    ['a{{end}}', /^line 1, column 4: unexpected \{\{end\}\}$/],
    ['{{.PodCIDR', /^line 1, column 1: \{\{ without \}\}$/],
    ['{{}}', /an empty/],
    ['{{template "x"}}', /\{\{template\}\} is not supported/],
    ['{{$x}}', /the variable \$x is not declared/],
    ['{{range .PodCIDR}}{{end}}', /^line 1, column 9: range needs a list$/],
    ['{{index .Routes 9}}', /index 9 is out of range/],
    ['{{.PodCIDR .Routes}}', /only a function takes arguments/],
    ['{{"open}}', /a string that does not end/],
    ['{{/* open }}', /a comment that does not end/],
    ['{{.PodCIDR.X}}', /there is no field \.X here/],
    ['{{(len .Routes}}', /"\)" is missing/],
    ['{{.Routes % 2}}', /unexpected "% 2"/],
  ]
  for (const [source, expected] of cases) assert.throws(() => render(source), { message: expected }, source)
})

test('only the data is seen, not what JavaScript objects bring along', () => {
  for (const source of ['{{.constructor}}', '{{.toString}}', '{{.Routes.length}}', '{{.__proto__}}']) assert.throws(() => render(source), /there is no field/, source)
})
