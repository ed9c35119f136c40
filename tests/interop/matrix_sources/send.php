<?php
// PHP's mail(): the program that sendmail_path names sends.
[$head, $body] = explode("\n\n", file_get_contents(getenv('MESSAGE')), 2);
$more = [];
foreach (explode("\n", $head) as $line) {
    if (!preg_match('/^(To|Subject):/', $line)) $more[] = $line;
}
exit(mail(getenv('RECIPIENT'), 'interop', $body, implode("\r\n", $more)) ? 0 : 1);
