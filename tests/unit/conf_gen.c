/* Writes what is made from the table of keys to standard output:
 *   conf_gen sample    config/kvferryd.ini
 *   conf_gen table     the table of docs/CONFIG.md
 * test_conf fails when the committed files differ from it. */
#include "conf/conf.h"

#include <string.h>

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "sample") == 0) {
        kvf_conf_write_sample(stdout);
    } else if (argc == 2 && strcmp(argv[1], "table") == 0) {
        kvf_conf_write_markdown(stdout);
    } else {
        fprintf(stderr, "usage: conf_gen sample|table\n");
        return 2;
    }
    return fflush(stdout) == 0 ? 0 : 1;
}
